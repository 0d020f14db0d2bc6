#!/bin/sh
# For instances that nap 0.1 has started, until `nap up` gives them to the agent.
#
# Runs one instance in the foreground, for a supervisor that knows one command and one signal: what systemd does with
# ExecStartPre=, ExecStart=, ExecStop= and ExecStopPost=.
#
# A container of that name and of the same body (NAP_BODY, its digest) that runs already is taken over: apps outlive a
# crash of the engine or of the supervisor. On SIGTERM NAP_DRAIN seconds pass, in which requests already on their way
# arrive, and then the container has NAP_GRACE seconds to end; after SIGUSR1, no time at all, and what it said last is
# reported. Once there, the container goes by its id, never by its name: a successor of this program may already own it.
set -u
programs=$(dirname "$0")/..
. "$programs/engine.sh"
. "$programs/create.sh"
stopping='' discarded='' id=''

# In a process of its own, which goes on when the supervisor dies and this shell with it: nobody else would do it then.
stop() {
    stopping=yes
    trap '' TERM
    [ -z "$id" ] && return
    {
        sleep "$NAP_DRAIN"
        docker stop --time "$NAP_GRACE" "$id"
        [ -n "$discarded" ] && report "$(state '{{.State.ExitCode}}')"
        docker rm --force --volumes "$id"
    } >/dev/null 2>&1 &
    stopper=$!
    while kill -0 "$stopper" 2>/dev/null; do wait "$stopper"; done
}
trap stop TERM
trap 'discarded=yes NAP_DRAIN=0 NAP_GRACE=0' USR1

state() {
    docker inspect --format "$1" "${id:-$NAP_CONTAINER}" 2>/dev/null
}

# The engine picks the host's ports, and knows only of its own; where another engine's are in the way it finds some in
# the end, because it never picks the same again.
port_was_taken() {
    case $(state '{{.State.Error}}') in
        *'address already in use'* | *'port is already allocated'*) return 0 ;;
    esac
    return 1
}

follow() {
    "$@" &
    follower=$!
    while kill -0 "$follower" 2>/dev/null; do # a signal ends wait, but not what it waits for
        wait "$follower"
        status=$?
    done
}

# Nothing runs, and $1 says why.
fail() {
    echo "$1"
    # shellcheck disable=SC2034 # report_exit.sh reads them
    NAP_ERROR=$1 NAP_OUTPUT=
    report 125
    exit 125
}

# What it tells is not exported: a tenant may have chosen it.
report() (
    # shellcheck disable=SC2034 # report_exit.sh reads them
    NAP_CONTAINER=${id:-$NAP_CONTAINER} NAP_STATUS=$1
    . "$programs/report_exit.sh"
)

start() {
    said=$(create) || fail "$said"
    id=$said
    tries=0
    while [ "$tries" -lt 30 ] && [ -z "$stopping" ]; do
        follow docker start --attach "$id"
        port_was_taken || break
        tries=$((tries + 1))
    done
}

main() {
    status=1
    said=$(docker inspect --format '{{.State.Running}} {{index .Config.Labels "nap.body"}}' "$NAP_CONTAINER" 2>&1)
    case $said in
        "true $NAP_BODY")
            id=$(state '{{.Id}}')
            follow docker attach --no-stdin --sig-proxy=false "$id"
            ;;
        *[Nn]'o such '*) start ;; # docker 29 begins small
        true* | false*)
            docker rm --force --volumes "$NAP_CONTAINER" >/dev/null 2>&1
            start
            ;;
        *) fail "$said" ;; # the engine is away
    esac
    if [ -z "$stopping" ]; then
        case $(state '{{.State.Running}}') in
            false) report "$status" ;;
            *) exit "$status" ;; # it is lost from sight, or the engine is away; this program's next run takes it over
        esac
    fi
    docker rm --force --volumes "$id" >/dev/null 2>&1
    exit "$status"
}

main; exit # on one line: a shell reads on in its script while it runs, and this file may be replaced meanwhile
