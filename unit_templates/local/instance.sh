#!/bin/sh
# Runs one instance in the foreground, for a supervisor that knows one command and one signal: what systemd does with
# ExecStartPre=, ExecStart=, ExecStop= and ExecStopPost=.
#
# usage: instance.sh <arguments of docker create, without --name>
# On SIGTERM it lets NAP_DRAIN seconds pass, in which requests already on their way arrive, and then gives the
# container NAP_GRACE seconds to end; after SIGUSR1, no time at all. Once created, the container goes by its id, never by
# its name: a successor of this program may already own the name.
set -u
programs=$(dirname "$0")/..
stopping= id=

stop() {
    stopping=yes
    trap '' TERM
    [ -z "$id" ] && return
    sleep "$NAP_DRAIN"
    docker stop --time "$NAP_GRACE" "$id" >/dev/null
}
trap stop TERM
trap 'NAP_DRAIN=0 NAP_GRACE=0' USR1

# The engine picks the host's ports, and knows only of its own; where another engine's are in the way it finds some in
# the end, because it never picks the same again.
port_was_taken() {
    case $(docker inspect --format '{{.State.Error}}' "$id") in
        *'address already in use'* | *'port is already allocated'*) return 0 ;;
    esac
    return 1
}

run() {
    docker start --attach "$id" &
    run=$!
    while kill -0 "$run" 2>/dev/null; do # a signal ends wait, but not what it waits for
        wait "$run"
        status=$?
    done
}

main() {
    docker rm --force "$NAP_CONTAINER" >/dev/null 2>&1
    if said=$(docker create --name "$NAP_CONTAINER" "$@" 2>&1) && [ -z "$stopping" ]; then
        id=$(echo "$said" | tail -n 1)
        run
        tries=1
        while [ "$tries" -lt 30 ] && [ -z "$stopping" ] && port_was_taken; do
            tries=$((tries + 1))
            run
        done
    else
        status=$?
        id=$NAP_CONTAINER
        echo "$said"
        export NAP_ERROR="$said"
    fi
    [ "$stopping" ] || NAP_CONTAINER=$id NAP_STATUS=$status /bin/sh "$programs/report_exit.sh"
    docker rm --force "$id" >/dev/null 2>&1
    exit "$status"
}

main "$@"; exit # on one line: a shell reads on in its script while it runs, and this file may be replaced meanwhile
