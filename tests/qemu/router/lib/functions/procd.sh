#!/bin/sh
# Stand-in for procd's shell interface. An instance is a directory, /tmp/run/procd/SERVICE.INSTANCE; /sbin/procd-instance
# runs it. As with procd: what is set again unchanged goes on, what has other words is restarted, what is gone is stopped.
# shellcheck disable=SC3043,SC2154
PROCD=/tmp/run/procd

procd_open_service() {
	procd_service=$1
	procd_seen=' '
}
procd_close_service() {
	local place
	for place in "$PROCD/$procd_service".*; do
		[ -d "$place" ] || continue
		case $procd_seen in *" ${place##*/} "*) ;; *) procd_end "$place" ;; esac
	done
}
procd_open_instance() {
	procd_name=$procd_service.${1:-instance1}
	procd_new=$PROCD/.new
	rm -rf "$procd_new"
	mkdir -p "$procd_new"
	: >"$procd_new/env"
}
procd_set_param() {
	local what="$1"
	shift
	: >"$procd_new/$what"
	procd_append_param "$what" "$@"
}
procd_append_param() {
	local what="$1"
	shift
	[ $# -eq 0 ] || printf '%s\n' "$@" >>"$procd_new/$what"
}
procd_words() { (cd "$1" && exec cat command env limits 2>/dev/null); }
procd_close_instance() {
	local place="$PROCD/$procd_name"
	procd_seen="$procd_seen$procd_name "
	if [ -d "$place" ]; then
		if [ "$(procd_words "$place")" = "$(procd_words "$procd_new")" ] && procd_lives "$place"; then return; fi
		procd_end "$place"
	fi
	mv "$procd_new" "$place"
	start-stop-daemon -S -b -m -p "$place/supervisor" -x /sbin/procd-instance -- "$place"
}
procd_lives() { kill -0 "$(cat "$1/supervisor" 2>/dev/null)" 2>/dev/null; }
procd_end() {
	local pid
	pid=$(cat "$1/supervisor" 2>/dev/null)
	[ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null
	while [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
	rm -rf "$1"
}
procd_kill() {
	local place
	for place in "$PROCD/$1.${2:-}"*; do [ ! -d "$place" ] || procd_end "$place"; done
}
procd_running() {
	local place
	for place in "$PROCD/$1."*; do [ ! -d "$place" ] || ! procd_lives "$place" || return 0; done
	return 1
}
procd_send_signal() { # SERVICE INSTANCE SIGNAL
	local place
	for place in "$PROCD/$1.${2#\*}"*; do
		[ ! -f "$place/pid" ] || kill -"${3:-HUP}" "$(cat "$place/pid")" 2>/dev/null
	done
}
procd_add_reload_trigger() {
	local word
	for word in "$@"; do
		grep -qs "^$word $procd_service$" /tmp/run/triggers || echo "$word $procd_service" >>/tmp/run/triggers
	done
}
