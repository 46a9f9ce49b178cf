#!/bin/sh
# OpenWrt's CI runs this in a container for each architecture: PACKAGE VERSION.
case $1 in
gatehouse)
	found=$(gatehouse --version) || exit 1
	case $2 in "$found"*) ;; *) echo "expected $2, got $found" && exit 1 ;; esac
	gatehouse check || exit 1
	/usr/libexec/rpcd/gatehouse list || exit 1
	;;
esac
