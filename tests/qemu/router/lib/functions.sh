#!/bin/sh
# Stand-in for OpenWrt's /lib/functions.sh: reading UCI, and what packages run when they come and go.
# shellcheck disable=SC3043,SC1090

config_load() { # PACKAGE: into CONFIG_SECTION_OPTION, as there; sections without a name are left out
	eval "$(uci -q show "$1" | sed -n "s/' '/ /g; s/^$1\.\([A-Za-z0-9_]*\)\.\([A-Za-z0-9_]*\)=/CONFIG_\1_\2=/p")"
}
config_get() { eval "$1=\${CONFIG_${2}_$3:-\${4:-}}"; } # VARIABLE SECTION OPTION [DEFAULT]
config_get_bool() {
	local found
	config_get found "$2" "$3" "${4:-}"
	case $found in
	1 | on | true | yes | enabled) eval "$1=1" ;;
	0 | off | false | no | disabled) eval "$1=0" ;;
	*) eval "$1=\$4" ;;
	esac
}

add_group_and_user() { # NAME.control: Require-User: USER=UID:GROUP=GID
	local line user group
	line=$(sed -n 's/^Require-User: *//p' "$1")
	for line in $line; do
		user=${line%%:*}
		group=${line#*:}
		grep -q "^${group%%=*}:" /etc/group || echo "${group%%=*}:x:${group#*=}:" >>/etc/group
		grep -q "^${user%%=*}:" /etc/passwd ||
			echo "${user%%=*}:x:${user#*=}:${group#*=}:${user%%=*}:/var/run/${user%%=*}:/bin/false" >>/etc/passwd
	done
}
default_postinst() { # SCRIPT ACTION
	local root package file code=0
	root=${IPKG_INSTROOT:-}
	package=${1##*/}
	package=${package%.postinst*}
	add_group_and_user "$root/usr/lib/opkg/info/$package.control"
	if [ -f "$root/usr/lib/opkg/info/$package.postinst-pkg" ]; then
		(. "$root/usr/lib/opkg/info/$package.postinst-pkg") || code=$?
	fi
	# Sourced, and gone when it says that it did its work.
	while read -r file; do
		case $file in
		/etc/uci-defaults/*) [ ! -f "$file" ] || { (. "$file") && rm -f "$file"; } ;;
		esac
	done <"$root/usr/lib/opkg/info/$package.list"
	while read -r file; do
		case $file in
		/etc/init.d/*)
			[ "$PKG_UPGRADE" = 1 ] || "$file" enable
			"$file" start
			;;
		esac
	done <"$root/usr/lib/opkg/info/$package.list"
	return "$code"
}
default_prerm() {
	local root package file code=0
	root=${IPKG_INSTROOT:-}
	package=${1##*/}
	package=${package%.prerm*}
	if [ -f "$root/usr/lib/opkg/info/$package.prerm-pkg" ]; then
		(. "$root/usr/lib/opkg/info/$package.prerm-pkg") || code=$?
	fi
	while read -r file; do
		case $file in
		/etc/init.d/*)
			[ "$PKG_UPGRADE" = 1 ] || "$file" disable
			"$file" stop
			;;
		esac
	done <"$root/usr/lib/opkg/info/$package.list"
	return "$code"
}
