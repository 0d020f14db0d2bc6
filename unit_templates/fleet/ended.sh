#!/bin/sh
# Decides whether it is worth telling how an instance ended: when nobody had asked for it, and when it never answered.
# report_exit.sh follows this. What the instance said is in the journal.
set -u
cd "$RUNTIME_DIRECTORY" || exit
[ -e created ] || exit 0
[ -e asked ] && [ -e answered ] && exit
NAP_STATUS=${EXIT_STATUS:-0}
case $NAP_STATUS in *[!0-9]*) NAP_STATUS=137 ;; esac
journalctl --sync
NAP_OUTPUT=$(journalctl --quiet --no-pager --output=cat --lines=20 "_SYSTEMD_INVOCATION_ID=$INVOCATION_ID")
NAP_ERROR=$(echo "$NAP_OUTPUT" | sed -n 's/^Error response from daemon: //p')
[ -z "$NAP_ERROR" ] || NAP_OUTPUT=
