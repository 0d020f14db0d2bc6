#!/bin/sh
# Announces one instance in etcd while it answers, and withdraws it when it does not.
#
# Follows the engine's events, so that the announcement is there as soon as the instance is ready, goes when its
# container dies, and comes back with the next container of that name. It needs sh, docker, etcdctl and curl, and from
# its environment:
#   NAP_CONTAINER  the container's name
#   NAP_KEY        the etcd key to write
#   NAP_PORT       the port that must answer, such as 8080/tcp
#   NAP_FACTS      what the announcement says beside host and ports: members of a JSON object
#   NAP_HOST       the address to announce; when empty, fleet's for this machine, else the one from which it reaches etcd
#   NAP_LEASE      seconds that the announcement outlives this program
#   NAP_ANSWERED   a file to make once the instance has answered; may be empty
#   ETCDCTL_…      where etcd is, and the files for TLS, as for etcdctl
set -u
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

# What the engine says of the container: the port to announce, all its ports as members of a JSON object
# ("8080/tcp":32768,"9090/tcp":32769,) and its address.
about() {
    port="{{(index (index .NetworkSettings.Ports \"$NAP_PORT\") 0).HostPort}}"
    ports='{{range $port, $at := .NetworkSettings.Ports}}{{range $i, $a := $at}}{{if not $i}}"{{$port}}":{{$a.HostPort}},{{end}}{{end}}{{end}}'
    docker inspect --format "$port $ports {{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}" "$1"
}

# Asked at the container's own address, because the engine's proxy accepts on a published port before the app listens.
# curl stays connected until its time is up, and then says whether it was.
listening() {
    connects=$(curl --silent --max-time 0.05 --write-out '%{num_connects}' "telnet://$1:${NAP_PORT%/*}" </dev/null)
    [ "${connects:-0}" -gt 0 ]
}

# Not over what another machine says: one that was cut off from the cluster may come back to find that its instance
# runs elsewhere by now, and is told to stop only a moment later.
write() {
    there=$(etcd get --print-value-only "$NAP_KEY") || return
    case $there in
        '' | "{\"host\": \"$host\","*) pause=5 ;;
        *) pause=1 && return ;;
    esac
    printf '%s' "$value" | etcd put --lease="$lease" "$NAP_KEY" >/dev/null
}

# In a session of its own: when the container ends and this program is told to stop at the same moment, the signal to the
# process group must not end what takes the announcement back.
withdraw() {
    [ -n "$keeper" ] && kill "$keeper" 2>/dev/null
    [ -n "$lease" ] && setsid --wait etcdctl --command-timeout=3s lease revoke "$lease" >/dev/null
}

# Waits for a child to end; a signal ends wait, but not what it waits for.
ended() {
    while kill -0 "$1" 2>/dev/null; do wait "$1"; done
}

# Runs in the background for as long as one container is up. Writes again whatever etcd loses.
announce() {
    lease= keeper=
    trap "trap '' TERM; exit" TERM
    trap withdraw EXIT
    health=$2
    # shellcheck disable=SC2046 # three words
    set -- $(about "$1")
    [ $# -ge 3 ] || exit
    if [ "$health" != healthy ]; then
        until listening "$3"; do
            sleep 0.1 & wait $!
        done
    fi
    [ -n "${NAP_ANSWERED:-}" ] && : >"$NAP_ANSWERED"
    while :; do
        host=$(host)
        if [ -n "$host" ] && granted=$(etcd lease grant "$NAP_LEASE"); then
            granted=${granted#lease }
            lease=${granted%% *}
            etcd lease keep-alive "$lease" >/dev/null 2>&1 &
            keeper=$!
            value="{\"host\": \"$host\", \"port\": $1, \"ports\": {${2%,}}, $NAP_FACTS}"
            while write; do
                sleep "$pause" & wait $!
            done
            kill "$keeper" 2>/dev/null
        fi
        sleep 1 & wait $!
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
    docker inspect --format '{{.Id}} {{if .State.Running}}start{{else}}die{{end}}' "$NAP_CONTAINER" 2>/dev/null
    exec docker events --since "$now" --filter "container=$NAP_CONTAINER" --filter event=start --filter event=die \
        --filter event=health_status --format '{{.Actor.ID}} {{.Action}}'
}

follow() {
    announcer= announced=
    trap : TERM
    while read -r id event; do
        if [ "$event" = start ]; then
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
            die | 'health_status: unhealthy')
                stop_announcing
                ;;
        esac
    done
    stop_announcing
}

# One SIGTERM, to this shell alone, is passed on to the whole process group, once: a second one would end the etcdctl
# that revokes the lease, because a Go program does not inherit that SIGTERM is ignored.
main() {
    trap "trap '' TERM; kill 0" TERM
    events | follow &
    ended $!
}

main; exit # on one line: a shell reads on in its script while it runs, and this file may be replaced meanwhile
