#!/bin/sh
# Stops an instance that is asked to stop; not one that has ended by itself, for which systemd runs this too. One that
# answered is given NAP_DRAIN seconds, in which requests already on their way arrive, and then NAP_GRACE to end.
set -u
cd "$RUNTIME_DIRECTORY" || exit
[ "$(docker inspect --format '{{.State.Running}}' "$NAP_CONTAINER" 2>/dev/null)" = true ] || exit 0
: >asked
[ -e answered ] && sleep "$NAP_DRAIN"
docker stop --time "$NAP_GRACE" "$NAP_CONTAINER" >/dev/null
