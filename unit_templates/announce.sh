#!/bin/sh
# Announces one instance in etcd while it is good, and withdraws it when it is not.
#
# Follows the engine's events, so that the announcement is there as soon as the instance is ready, goes when its
# container dies or is paused, and comes back when it goes on or with the next container of that name. An instance that
# fails its checks, or whose HEALTHCHECK does, is withdrawn and stopped, and what runs it starts it anew. It needs sh,
# docker, etcdctl and curl, and from its environment:
#   NAP_CONTAINER  the container's name
#   NAP_KEY        the etcd key to write
#   NAP_PORT       the port that must answer, such as 8080/tcp; empty for an instance that answers nobody
#   NAP_CHECK_1 …  what it must pass (nap_receiver/health.py): WHEN KIND DELAY WAIT TIMEOUT ATTEMPTS WHAT…, where WHEN is
#                  startup, liveness or both, and KIND WHAT is http PORT PATH, tcp PORT, command WORDS or uptime SECONDS;
#                  without any, the port must answer
#   NAP_GRACE      seconds between SIGTERM and SIGKILL when it is stopped
#   NAP_EXIT_KEY   the etcd key that tells why it is not good
#   NAP_FACTS      what the announcement says beside host and ports: members of a JSON object
#   NAP_HOST       the address to announce; when empty, fleet's for this machine, else the one from which it reaches etcd
#   NAP_LEASE      seconds that the announcement outlives this program
#   NAP_ANSWERED   a file to make once the instance has answered; may be empty
#   ETCDCTL_…      where etcd is, and the files for TLS, as for etcdctl
set -uf
export ETCDCTL_API=3

etcd() { etcdctl --command-timeout=3s "$@"; }

# GET a path of etcd's.
etcd_says() {
    path=$1
    shift
    curl --silent --max-time 3 ${ETCDCTL_CACERT:+--cacert "$ETCDCTL_CACERT"} ${ETCDCTL_CERT:+--cert "$ETCDCTL_CERT"} \
        ${ETCDCTL_KEY:+--key "$ETCDCTL_KEY"} "$@" "$ETCDCTL_ENDPOINTS/$path"
}

# fleet keeps its machines in etcd's v2 keys, as JSON in JSON.
host() {
    [ -n "${NAP_HOST:-}" ] && echo "$NAP_HOST" && return
    id=$(cat /etc/machine-id)
    known=$(etcd_says "v2/keys/_coreos.com/fleet/machines/$id/object" | sed -n 's/.*\\"PublicIP\\":\\"\([^\\]*\).*/\1/p')
    [ -n "$known" ] && echo "$known" && return
    etcd_says health --output /dev/null --write-out '%{local_ip}'
}

# What the engine says of the container: its address; before that, where it has a port to announce, that port, and all
# its ports as members of a JSON object ("8080/tcp":32768,"9090/tcp":32769,).
about() {
    address='{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}'
    if [ -z "$NAP_PORT" ]; then
        docker inspect --format "$address" "$1"
        return
    fi
    port="{{(index (index .NetworkSettings.Ports \"$NAP_PORT\") 0).HostPort}}"
    ports='{{range $port, $at := .NetworkSettings.Ports}}{{range $i, $a := $at}}{{if not $i}}"{{$port}}":{{$a.HostPort}},{{end}}{{end}}{{end}}'
    docker inspect --format "$port $ports $address" "$1"
}

# Asked at the container's own address, because the engine's proxy accepts on a published port before the app listens.
# curl stays connected until its time is up, and then says whether it was.
listening() {
    connects=$(curl --silent --max-time "$1" --write-out '%{num_connects}' "telnet://$address:$2" </dev/null)
    [ "${connects:-0}" -gt 0 ]
}

# One try of a check.
passes() {
    what=${1#* * * * * * }
    # shellcheck disable=SC2086 # words
    set -- $1
    case $2 in
        http) curl --silent --fail --globoff --output /dev/null --max-time "$5" "http://$address:$7$8" ;;
        tcp) listening "$5" "$7" ;;
        command) eval "timeout --kill-after=1 $5 docker exec $id $what" </dev/null >/dev/null 2>&1 ;;
        uptime) sleep "$7" ;;
    esac
}

# Signals are heard meanwhile.
heedful() {
    "$@" &
    wait $!
}

# Whether a check passes before its tries are used up.
passes_in_time() {
    checked=yes
    # shellcheck disable=SC2086 # words
    set -- "$1" $1
    left=$7
    heedful sleep "$4"
    until heedful passes "$1"; do
        left=$((left - 1))
        if [ "$left" -le 0 ]; then
            complain "its check ($3 ${1#* * * * * * }) failed $7 times"
            return 1
        fi
        heedful sleep "$5"
    done
}

# Runs beside an announcement, until a check fails too often in a row; that ends it.
watch() {
    # shellcheck disable=SC2086 # words
    set -- "$1" $1
    left=$7
    while [ "$left" -gt 0 ]; do
        sleep "$5"
        if passes "$1"; then left=$7; else left=$((left - 1)); fi
    done
    trap '' TERM
    kill -USR1 "$announcing"
    complain "its check ($3 ${1#* * * * * * }) failed $7 times"
}

start_watching() {
    watch "$1" &
    watchers="$watchers $!"
}

# Calls $1 with each check that is for the moment $2.
each_check() {
    number=1
    while eval "check=\${NAP_CHECK_$number:-}" && [ -n "$check" ]; do
        number=$((number + 1))
        case $check in
            "$2 "* | "both "*) "$1" "$check" || return ;;
        esac
    done
}

# Tells why the instance is not good. Where this program came to the shell as text, report_exit is there already.
command -v report_exit >/dev/null || report_exit() ( . "$(dirname "$0")/report_exit.sh" )
complain() (
    export NAP_ERROR="$1" NAP_STATUS=0
    report_exit
)

# Ends the container, and what runs it starts it anew. In a session of its own: whoever waits for this program does not
# wait for that.
end() {
    setsid docker stop --time "$NAP_GRACE" "$1" >/dev/null 2>&1 &
}

# Not over what another machine says: one that was cut off from the cluster may come back to find that its instance
# runs elsewhere by now, and is told to stop only a moment later. What it says itself already is written once more where
# the lease is new: the one before, and with it the key, ends soon.
write() {
    there=$(etcd get --print-value-only "$NAP_KEY") || return
    case $there in
        "$value") pause=5 && [ -n "$written" ] && return ;;
        '' | "{\"host\": \"$host\","*) pause=5 ;;
        *) pause=1 && return ;;
    esac
    printf '%s' "$value" | etcd put --lease="$lease" "$NAP_KEY" >/dev/null && written=yes
}

# In a session of its own: when the container ends and this program is told to stop at the same moment, the signal to the
# process group must not end what takes the announcement back.
withdraw() {
    # shellcheck disable=SC2086 # process ids
    [ -n "$keeper$watchers" ] && kill $keeper $watchers 2>/dev/null
    [ -n "$lease" ] && setsid --wait etcdctl --command-timeout=3s lease revoke "$lease" >/dev/null
}

# Waits for a child to end; a signal ends wait, but not what it waits for.
ended() {
    while kill -0 "$1" 2>/dev/null; do wait "$1"; done
}

# Runs in the background for as long as one container is up. Writes again whatever etcd loses.
announce() {
    id=$1 checked= lease= written= keeper= watchers= reach= ending=
    [ "$2" = healthy ] && checked=yes
    # shellcheck disable=SC2016 # said by that shell, whose parent this is
    announcing=$(exec sh -c 'echo $PPID')
    trap "trap '' TERM; exit" TERM
    trap "trap '' TERM USR1; ending=yes; exit" USR1
    trap 'withdraw; [ -z "$ending" ] || end "$id"' EXIT
    # shellcheck disable=SC2046 # words
    set -- $(about "$id")
    if [ -n "$NAP_PORT" ]; then
        [ $# -ge 3 ] || exit
        reach="\"port\": $1, \"ports\": {${2%,}}, "
        shift 2
    fi
    address=${1:-}
    each_check passes_in_time startup || { ending=yes && exit; }
    if [ -z "$checked" ]; then
        until listening 0.05 "${NAP_PORT%/*}"; do
            heedful sleep 0.1
        done
    fi
    each_check start_watching liveness
    [ -n "${NAP_ANSWERED:-}" ] && : >"$NAP_ANSWERED"
    while :; do
        host=$(host)
        if [ -n "$host" ] && granted=$(etcd lease grant "$NAP_LEASE"); then
            granted=${granted#lease }
            lease=${granted%% *} written=
            etcdctl lease keep-alive "$lease" >/dev/null 2>&1 & # not by a function: that would be a shell to kill
            keeper=$!
            value="{\"host\": \"$host\", $reach$NAP_FACTS}"
            while write; do
                heedful sleep "$pause"
            done
            kill "$keeper" 2>/dev/null
        fi
        heedful sleep 1
    done
}

stop_announcing() {
    if [ -n "$announcer" ]; then
        kill "$announcer" 2>/dev/null
        ended "$announcer"
    fi
    announcer= announced=
}

# What happens to the container, a line each: its id and an event; first of all how it is now.
events() {
    now=$(date +%s)
    docker inspect --format '{{.Id}} {{if .State.Paused}}pause{{else if .State.Running}}start{{else}}die{{end}}' \
        "$NAP_CONTAINER" 2>/dev/null
    exec docker events --since "$now" --filter "container=$NAP_CONTAINER" --filter event=start --filter event=die \
        --filter event=pause --filter event=unpause --filter event=health_status --format '{{.Actor.ID}} {{.Action}}'
}

follow() {
    announcer= announced=
    trap : TERM
    while read -r id event; do
        if [ "$event" = start ] || [ "$event" = unpause ]; then
            event=$(docker inspect --format '{{if .State.Health}}health_status: {{.State.Health.Status}}{{else}}start{{end}}' "$id" 2>/dev/null) || continue
        fi
        case $event in
            start | 'health_status: healthy')
                [ "$announced" = "$id" ] && continue
                stop_announcing
                announced=$id
                announce "$id" "${event##* }" &
                announcer=$!
                ;;
            die | pause)
                stop_announcing
                ;;
            'health_status: unhealthy')
                stop_announcing
                complain 'its HEALTHCHECK fails'
                end "$id"
                ;;
        esac
    done
    stop_announcing
}

# One SIGTERM, to this shell alone, is passed on to the whole process group, once: a second one would end the etcdctl
# that revokes the lease, because a Go program does not inherit that SIGTERM is ignored.
main() {
    trap "trap '' TERM; kill 0" TERM
    # What runs it was killed, and comes back with another one, which takes the announcement over before its lease ends.
    trap 'kill -KILL 0' USR2
    events | follow &
    ended $!
}

main; exit # on one line: a shell reads on in its script while it runs, and this file may be replaced meanwhile
