#!/bin/sh
# Starts Caddy with what it was told last, so that it serves before anybody tells it again.
#
# usage: caddy.sh FILE CADDY [OPEN…], where FILE is a configuration for when it was never told any, and OPEN opens its
# addresses and becomes the command that follows
# Caddy keeps what it was told below XDG_CONFIG_HOME, and writes it there anew when it has started. Until then it has
# another name: what it cannot start with, such as half a file, or an address that is another's by now, is tried once.
set -u
file=$1 caddy=$2
shift 2
told=$XDG_CONFIG_HOME/caddy/autosave.json

# Else it takes the account's home, or what directory it happens to start in, for what it counts its installations by.
export XDG_DATA_HOME="$XDG_CONFIG_HOME"

# With some more memory it answers more requests, and takes up changes sooner.
export GOGC="${GOGC:-400}"

case $("$caddy" version) in
    2.[0-8].* | v2.[0-8].*)
        # It knows nothing of addresses that are open. Each change of routes opens them anew, and closes those before.
        # Who has connected there, and was not accepted yet, is handed over (Linux 5.14; it takes root), or cut off.
        set --
        echo 1 2>/dev/null >/proc/sys/net/ipv4/tcp_migrate_req
        ;;
esac

if grep -qs '/caddy\.sock"' "$told" && mv "$told" "$told.tried"; then
    file=$told.tried
fi
exec "$@" "$caddy" run --config "$file"
