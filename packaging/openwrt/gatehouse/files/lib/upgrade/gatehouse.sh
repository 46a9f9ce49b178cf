#!/bin/sh
# sysupgrade writes the flash anew and brings back what is in its archive, which it makes in memory. /etc/gatehouse is
# always in it (keep.d). The ring is if it lies on that flash and fits; on a disk or a partition of its own it stays.
# shellcheck disable=SC2034,SC3043

gatehouse_ring() { # FILE: sysupgrade's list of what it keeps
	local ring size free
	ring=$(uci -q get gatehouse.ring.directory)
	ring=${ring:-/srv/gatehouse/ring}
	[ -d "$ring" ] || return 0
	[ "$(df -P "$ring" | awk 'NR==2 {print $1}')" = "$(df -P / | awk 'NR==2 {print $1}')" ] || return 0
	size=$(du -sk "$ring" | cut -f1)
	free=$(awk '$1=="MemAvailable:" {print $2}' /proc/meminfo)
	if [ $((size * 2)) -gt "${free:-0}" ]; then
		echo "gatehouse: $ring ($size kB) does not fit into memory and would be LOST:" \
			"copy it away first, or move it to a partition of its own" >&2
		return 0
	fi
	find "$ring" -type f >>"$1"
}

sysupgrade_init_conffiles="$sysupgrade_init_conffiles gatehouse_ring"
