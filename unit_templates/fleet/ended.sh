#!/bin/sh
# Decides whether it is worth telling how an instance ended: when nobody had asked for it, and when it never answered.
# report_exit.sh follows this.
cd "$RUNTIME_DIRECTORY" || exit
[ -e asked ] && [ -e answered ] && exit
docker inspect "$NAP_CONTAINER" >/dev/null 2>&1 || exit
NAP_STATUS=${EXIT_STATUS:-0}
case $NAP_STATUS in *[!0-9]*) NAP_STATUS=137 ;; esac
