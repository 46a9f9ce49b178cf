#!/bin/sh
# OpenWrt's CI: PACKAGE VERSION.
[ "$1" != python3-dnslib ] || python3 -c 'import dnslib' || exit 1
