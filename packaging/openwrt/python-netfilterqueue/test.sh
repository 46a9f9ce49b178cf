#!/bin/sh
# OpenWrt's CI: PACKAGE VERSION.
[ "$1" != python3-netfilterqueue ] || python3 -c 'import netfilterqueue' || exit 1
