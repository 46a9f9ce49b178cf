#!/bin/sh
# As OpenWrt's: what dnsmasq says of a lease goes to the hotplug scripts.
[ "$1" != old ] || exec true
case $1 in
add) ACTION=add ;;
del) ACTION=remove ;;
*) ACTION=update ;;
esac
export ACTION MACADDR="$2" IPADDR="$3" HOSTNAME="${4:-}"
exec /sbin/hotplug-call dhcp
