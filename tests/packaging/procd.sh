#!/bin/sh
# What /etc/rc.common, /lib/functions.sh and procd.sh give to an init script, as far as ours asks; writes down what procd
# would be told: one line `instance NAME`, then `NAME PARAMETER WORDS`. Usage: procd.sh INIT VERB.
# shellcheck disable=SC1090,SC1091

. "$(dirname "$0")/../qemu/router/lib/functions.sh"
extra_command() { echo "command $1"; }
procd_open_instance() {
	open_instance=$1
	echo "instance $1"
}
procd_set_param() { echo "$open_instance $*"; }
procd_append_param() { echo "$open_instance $*"; }
procd_close_instance() { :; }
procd_add_reload_trigger() { echo "trigger $*"; }
procd_send_signal() { echo "signal $*"; }
start() { start_service "$@"; }
. "$1"
case $2 in
start) start_service ;;
reload) reload_service ;;
triggers) service_triggers ;;
*) "$2" ;;
esac
