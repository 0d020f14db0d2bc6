#!/bin/sh
# Starts Caddy with what it was told last, so that it serves before anybody tells it again.
#
# usage: caddy.sh FILE CADDY, where FILE is a configuration for when it was never told any, and has the name of the socket
# that it is told at
# Caddy keeps what it was told below XDG_CONFIG_HOME, and writes it there anew when it has started. Until then it has
# another name: what it cannot start with, such as half a file, or an address that is another's by now, is tried once.
set -u
told=$XDG_CONFIG_HOME/caddy/autosave.json
name=${1##*/}

# Else it takes the account's home, or what directory it happens to start in, for what it counts its installations by.
export XDG_DATA_HOME="$XDG_CONFIG_HOME"

# With some more memory it answers more requests, and takes up changes sooner.
export GOGC="${GOGC:-400}"

# From before the machine was booted, it leads to ports that belong to other containers by now.
booted=$(sed -n 's/^btime //p' /proc/stat)
[ "$(stat -c %Y "$told" 2>/dev/null || echo "$booted")" -ge "$booted" ] || rm -f "$told"

if grep -qsF "/${name%.json}.sock\"" "$told" && mv "$told" "$told.tried"; then
    exec "$2" run --config "$told.tried"
fi
exec "$2" run --config "$1"
