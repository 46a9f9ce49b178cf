#!/bin/sh
# An interactive login on the console or by ssh is a line of the maintenance log.
case $- in
*i*) /usr/libexec/gatehouse/tell login "${USER:-$(id -un)}" "$(tty 2>/dev/null)" "${SSH_CONNECTION%% *}" ;;
esac
