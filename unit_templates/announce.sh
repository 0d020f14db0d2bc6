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
#   NAP_CHECK_1 …  what it must pass (nap_receiver/model/health.py): NUMBER WHEN KIND DELAY WAIT TIMEOUT ATTEMPTS WHAT, where
#                  WHEN is startup, liveness, both or readiness (at the start, and later, when an instance that fails it
#                  is withdrawn until it passes), and KIND WHAT is http PORT, https PORT, tcp PORT, command or uptime
#                  SECONDS; then warn, if the instance is good all the same, and on-failure, if a command runs then.
#                  Without any, the port must answer
#   NAP_CHECKS_KEY below this etcd key, by their NUMBER, what checks ask that a tenant chose: of http, in JSON, a text of
#                  the path, lines for curl and what the answer must have (the last two in base64, or -); of command the
#                  body of the engine's call, and by NUMBER-failure that of on-failure's. It is in no argument and no
#                  environment. What the last failed try of a check was answered is written there too, by
#                  NUMBER-answer, for the one whose push waits; it goes by itself after ten minutes. The image's
#                  HEALTHCHECK is number 0. By starved, how long a start that takes long has waited for a processor;
#                  by listens, where the container's sockets listen meanwhile
#   NAP_PORT_GUESSED  set where nobody has named that port: then checks that pass say nothing of it
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
    curl --disable --silent --max-time 3 ${ETCDCTL_CACERT:+--cacert "$ETCDCTL_CACERT"} ${ETCDCTL_CERT:+--cert "$ETCDCTL_CERT"} \
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

# What the engine says of the container: its process and its address; before that, where it has a port to announce, that
# port, and all its ports as members of a JSON object ("8080/tcp":32768,"9090/tcp":32769,).
about() {
    address='{{.State.Pid}} {{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}'
    if [ -z "$NAP_PORT" ]; then
        docker inspect --format "$address" "$1"
        return
    fi
    port="{{(index (index .NetworkSettings.Ports \"$NAP_PORT\") 0).HostPort}}"
    ports='{{range $port, $at := .NetworkSettings.Ports}}{{range $i, $a := $at}}{{if not $i}}"{{$port}}":{{$a.HostPort}},{{end}}{{end}}{{end}}'
    docker inspect --format "$port $ports $address" "$1"
}

# Asked at the container's own address, because the engine's proxy accepts on a published port before the app listens.
# curl stays connected until its time is up, and then says whether it was. What the app says first, as gRPC servers do, is
# not that word.
listening() {
    connects=$(curl --disable --noproxy '*' --silent --output /dev/null --max-time "$1" --write-out '%{num_connects}' "telnet://$address:$2" </dev/null)
    [ "${connects:-0}" -gt 0 ]
}

# Whether a command succeeds in the container; $1 is the body that says which, and $2 the seconds that it may take. Where
# it runs on after them, the status is 2.
succeeds() {
    made=$(printf %s "$1" | engine "/containers/$id/exec" --max-time 5 --data-binary @- |
        sed -n 's/^{"Id":"\([0-9a-f]*\)".*/\1/p')
    [ -n "$made" ] || return
    printed=$(engine "/exec/$made/start" --max-time "$2" --data '{"Detach": false}' 2>/dev/null | printed_last)
    status=$(engine "/exec/$made/json" --max-time 5 | sed -n 's/.*"ExitCode":\([0-9]*\),.*/\1/p')
    [ "$status" = 0 ] && return
    [ -n "$status" ] || return 2
    return 1
}

# Tells how it ended, where it does not succeed.
succeeds_or_tells() {
    made=
    succeeds "$@" && return
    failed=$?
    [ -z "$made" ] || tell_answer '' "${status:-0}" '' "$printed"
    return "$failed"
}

# The last that a command printed, from what the engine sends: pieces with a head of eight bytes each (Docker Engine API,
# "Stream format").
printed_last() {
    tail -c 8192 | tr '\000\n' '\003\004' | LC_ALL=C sed 's/[\x01\x02]\x03\x03\x03....//g' | tr '\003\004' ' \n' | tail -c 2000
}

# Calls the image's HEALTHCHECK: $1 is the seconds that it may take, $2 the body. After one that runs on, the engine alone
# decides: it ends what takes too long, and nap cannot.
healthy() {
    [ "$(docker inspect --format '{{.State.Health.Status}}' "$id")" = healthy ] && return
    [ -z "$hung" ] && trying=0 && succeeds_or_tells "$2" "$1"
}

# Waits for the image's HEALTHCHECK. The engine asks first when its interval is over, which may be longer than a deploy may
# take; so it is asked here at once, and then each second.
await_healthy() {
    shell='{{if eq (index .Config.Healthcheck.Test 0) "CMD-SHELL"}}{{range .Config.Shell}}{{json .}},{{else}}"/bin/sh","-c",{{end}}{{end}}'
    words='{{range $i, $word := slice .Config.Healthcheck.Test 1}}{{if $i}},{{end}}{{json $word}}{{end}}'
    body="{\"AttachStdout\":true,\"AttachStderr\":true,\"Cmd\":[$shell$words]}"
    asked=$(docker inspect --format "{{printf \"%d\" .Config.Healthcheck.Timeout}} $body" "$id")
    seconds=$(((${asked%% *} + 999999999) / 1000000000))
    [ "$seconds" -gt 0 ] || seconds=30 # Dockerfile reference, HEALTHCHECK
    hung='' tries=1
    until heedful healthy "$seconds" "${asked#* }"; do
        [ $? -ne 2 ] || hung=yes
        tries=$((tries + 1))
        heedful sleep 1
    done
    [ "$tries" = 1 ] || forget_answer 0
    checked=yes
}

# Why the engine calls the container unhealthy.
tell_unhealthy() {
    last=$(docker inspect --format '{{$status := 0}}{{$said := ""}}{{range .State.Health.Log}}{{$status = .ExitCode}}{{$said = .Output}}{{end}}{{$status}} {{$said}}' "$1")
    trying=0 starting=yes
    tell_answer '' "${last%% *}" '' "$(printf %s "${last#* }" | tail -c 2000)"
}

# Whether a GET succeeds; $1 is http or https, $2 the port, $3 the seconds that it may take, $4 what is asked, in JSON.
answers() {
    asked=${4#?}
    # shellcheck disable=SC2086 # words
    set -- "$1" "$2" "$3" ${asked%?}
    said=$({
        {
            get "$@" 2>&4
            echo "curl $?" >&4
        } | look "${6:--}"
    } 4>&1)
    # Of an answer that must have a content, no more is awaited than its first MiB.
    case $said in
        *'content no'*) ;;
        *'status '[23]*) case $said in *'curl 0'* | *'content yes'*) return ;; esac ;;
    esac
    told=$(of_answer status) # nothing where curl is from before 7.63
    tell_answer "$address:$2" "${told:-0}" "$(printf '%s\n' "$said" | sed -n '/^curl: (23)/d; s/^curl: ([0-9]*) //p' | head -c 200)" \
        "$(of_answer line | base64 -d)"
    return 1
}

of_answer() { printf '%s\n' "$said" | sed -n "s/^$1 //p"; }

# Tells of an answer that comes in whether $1, in base64, is in its first MiB, and its first line, in base64; neither can
# be taken for what curl says.
look() {
    body=$(head -c 1048576 | tr '\n\000' '\001\001')
    if [ "$1" = - ]; then
        cat >/dev/null
    else
        if printf %s "$body" | has "$1"; then echo 'content yes'; else echo 'content no'; fi
    fi
    echo "line $(printf %s "$body" | head -c 4096 | tr '\001' '\n' | grep --text --max-count 1 '[^[:space:]]' | head -c 200 | base64_line)"
}

# Tells what a failed try was answered while the instance starts; later nobody waits for it. $1 is the address that was
# asked, $2 a status, $3 why there was none, $4 what was said.
tell_answer() {
    [ -z "$starting" ] || printf '{"asked": "%s", "status": %d, "error": "%s", "said": "%s"}' "$1" "$2" \
        "$(printf %s "$3" | base64_line)" "$(printf %s "$4" | base64_line)" | tell "$trying-answer"
}

# Writes what comes in, which goes by itself after ten minutes.
tell() {
    granted=$(etcd lease grant 600) || return
    granted=${granted#lease }
    etcd put --lease="${granted%% *}" "$NAP_CHECKS_KEY$1" >/dev/null
}

# Nanoseconds that the thread of the container which waited longest for a processor has waited (the kernel's
# sched-stats.rst, /proc/PID/schedstat); nothing where that cannot be said.
starved() {
    set +f
    for pid in $(docker top "$id" -o pid | sed 1d); do
        cat "/proc/$pid/task/"*/schedstat
    done 2>/dev/null | cut -d ' ' -f 2 | sort -n | tail -n 1
}

# Where the container's TCP sockets listen, as the kernel has it (proc(5), /proc/PID/net/tcp): 00000000:1F90. Fails where
# that process is none of this machine's, which its addresses tell. The kernel lists sockets that listen first, so the
# beginning has them.
sockets() {
    head -c 65536 "/proc/$pid/net/fib_trie" 2>/dev/null | grep --quiet "|-- $address\$" || return
    for family in tcp tcp6; do
        head -c 65536 "/proc/$pid/net/$family" 2>/dev/null
    done | sed -n 's/^ *[0-9]*: \([0-9A-F]*:[0-9A-F]*\) [0-9A-F]*:0000 0A .*/\1/p' | sort -u | tr '\n' ' '
}

# Whether a socket listens on all addresses; one of the container's own is not looked for.
any_is_open() { sockets | tr ' ' '\n' | grep --quiet '^0*:'; }

# Nanoseconds of processors that the container has used (Docker Engine API, GET /containers/ID/stats).
processor_time() {
    engine "/containers/$id/stats?stream=false&one-shot=true" --max-time 5 2>/dev/null |
        sed -n 's/.*"cpu_stats":{"cpu_usage":{"total_usage":\([0-9]*\).*/\1/p'
}

# Runs beside a start: tells where the container listens whenever that changes, and when it has settled: when it was the
# same five times, a second apart, in each of which the container used less than a tenth of a processor. Before that it
# may only have begun, with a port for debugging, say.
tell_sockets() {
    told=unknown seen=unknown same=0 used=0
    sleep 1
    while now=$(sockets); do
        before=$used used=$(processor_time)
        if [ "$now" = "$seen" ] && [ "$((${used:-0} - ${before:-0}))" -lt 100000000 ]; then
            same=$((same + 1))
        else
            same=0
        fi
        seen=$now
        if [ "$same" -ge 5 ]; then settled=true; else settled=false; fi
        if [ "$settled $now" != "$told" ]; then
            printf '{"sockets": "%s", "settled": %s}' "$now" "$settled" | tell listens && told="$settled $now"
        fi
        sleep 1
    done
}

# Runs beside a start that takes long: whoever waits for it allows for the time that a busy machine has taken from it.
tell_starved() {
    sleep 5
    while waited=$(starved) && [ -n "$waited" ]; do
        echo "{\"waited\": $waited}" | tell starved
        sleep 3
    done
}

# A check passed in the end.
forget_answer() { etcd del "$NAP_CHECKS_KEY$1-answer" >/dev/null || :; }

base64_line() { base64 | tr -d '\n'; }

# What answers; its arguments are those of answers, the last as words. A container's certificate is anybody's.
get() {
    {
        printf 'url = "%s://%s:%s%s"\n' "$1" "$address" "$2" "$4"
        [ "${5:--}" = - ] || printf %s "$5" | base64 -d
    } | curl --disable --noproxy '*' --silent --show-error --globoff --insecure --max-time "$3" --config - \
        --write-out '%{stderr}status %{http_code}\n'
}

# Whether $1, in base64, is in what comes in: both as one line, for grep takes each line for a pattern of its own.
has() {
    wanted=$(printf %s "$1" | base64 -d | tr '\n' '\001')
    tr '\n\000' '\001\001' | {
        printf '%s\n' "$wanted" | LC_ALL=C grep --text --quiet --fixed-strings --file=/dev/fd/3 3<&0 0<&4
    } 4<&0
}

# One try of a check.
passes() {
    trying=${1%% *}
    eval "asked=\${asked_$trying:-}"
    # shellcheck disable=SC2086 # words
    set -- $1
    case $3 in
        http | https) answers "$3" "$8" "$6" "$asked" ;;
        tcp) listening "$6" "$8" ;;
        command) succeeds_or_tells "$asked" "$6" ;;
        uptime) sleep "$8" ;;
    esac
}

# Takes up what a check asks, once etcd tells it; kept from then on, for etcd may be away when it is asked.
take_up() {
    case $1 in *' http '* | *' https '* | *' command '*) await "${1%% *}" && eval "asked_${1%% *}=\$asked" ;; esac
    case $1 in *' on-failure'*) await "${1%% *}-failure" && eval "on_failure_${1%% *}=\$asked" ;; esac
}

await() {
    while :; do
        asked=$(etcd get --print-value-only "$NAP_CHECKS_KEY$1") && [ -n "$asked" ] && return
        heedful sleep 1
    done
}

# After the last try of a check: whether the instance is good all the same. Its number is told with the announcement.
forgiven() {
    # shellcheck disable=SC2086 # words
    set -- "$1" $1
    eval "what=\${on_failure_$2:-}"
    [ -z "$what" ] || heedful succeeds "$what" "$7"
    case $1 in
        *' warn'*) warned="$warned${warned:+, }$2" ;;
        *) return 1 ;;
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
    left=$8
    heedful sleep "$5"
    until heedful passes "$1"; do
        left=$((left - 1))
        if [ "$left" -le 0 ]; then
            forgiven "$1" && return
            complain '' "$2"
            return 1
        fi
        heedful sleep "$6"
    done
    [ "$left" = "$8" ] || forget_answer "$2"
}

# Runs beside an announcement, until a check fails too often in a row; that ends it.
watch() {
    # shellcheck disable=SC2086 # words
    set -- "$1" $1
    left=$8
    while [ "$left" -gt 0 ]; do
        sleep "$6"
        if passes "$1"; then left=$8; else left=$((left - 1)); fi
        [ "$left" -gt 0 ] || ! forgiven "$1" || left=$8
    done
    trap '' TERM
    kill -USR1 "$announcing"
    complain '' "$2"
}

start_watching() {
    watch "$1" &
    watchers="$watchers $!"
}

# Whether a check still passes, in as many tries as it has.
stays_ready() {
    # shellcheck disable=SC2086 # words
    set -- "$1" $1
    left=$8
    until heedful passes "$1"; do
        left=$((left - 1))
        if [ "$left" -le 0 ]; then
            forgiven "$1" && return
            unready=$1
            return 1
        fi
        heedful sleep "$6"
    done
}

# Not announced until it passes the check again that it failed; the container runs on.
await_ready() {
    etcd lease revoke "$lease" >/dev/null && lease=
    # shellcheck disable=SC2086 # words
    set -- "$1" $1
    until heedful passes "$1"; do heedful sleep "$6"; done
    unready=
}

# Calls $1 with each check that is for the moment $2: startup, liveness or readiness.
each_check() {
    number=1
    while eval "check=\${NAP_CHECK_$number:-}" && [ -n "$check" ]; do
        number=$((number + 1)) when=${check#* }
        case $2.${when%% *} in
            startup.startup | startup.both | startup.readiness | liveness.liveness | liveness.both | readiness.readiness)
                "$1" "$check" || return
                ;;
        esac
    done
}

# Where this program came to the shell as text, these are there already.
command -v engine >/dev/null || . "$(dirname "$0")/engine.sh"
command -v report_exit >/dev/null || report_exit() ( . "$(dirname "$0")/report_exit.sh" )

# Tells why the instance is not good, in words or by the number of a check.
complain() (
    NAP_ERROR=$1 NAP_CHECK=${2:-0} NAP_STATUS=0
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
    id=$1 checked='' lease='' written='' keeper='' watchers='' reach='' ending='' warned='' unready='' starting=yes
    mode=$2
    [ "$mode" = healthy ] && checked=yes
    # shellcheck disable=SC2016 # said by that shell, whose parent this is
    announcing=$(exec sh -c 'echo $PPID')
    trap "trap '' TERM; exit" TERM
    trap "trap '' TERM USR1; ending=yes; exit" USR1
    trap 'withdraw; [ -z "$ending" ] || end "$id"' EXIT
    # shellcheck disable=SC2046 # words
    set -- $(about "$id")
    if [ -n "$NAP_PORT" ]; then
        [ $# -ge 4 ] || exit
        reach="\"port\": $1, \"ports\": {${2%,}}, "
        shift 2
    fi
    pid=${1:-0} address=${2:-}
    each_check take_up startup
    each_check take_up liveness
    tell_starved &
    telling=$!
    if [ -n "$NAP_PORT" ]; then
        tell_sockets &
        telling="$telling $!"
    fi
    watchers=$telling
    [ "$mode" != starting ] || await_healthy
    each_check passes_in_time startup || { ending=yes && exit; }
    if [ -z "$checked" ] || [ -n "${NAP_PORT_GUESSED:-}" ]; then
        until listening 0.05 "${NAP_PORT%/*}"; do
            [ -z "$checked" ] || any_is_open || break
            heedful sleep 0.1
        done
    fi
    facts=$NAP_FACTS${warned:+, \"warned\": [$warned]}
    # shellcheck disable=SC2086 # process ids
    kill $telling 2>/dev/null
    starting='' watchers=''
    each_check start_watching liveness
    [ -n "${NAP_ANSWERED:-}" ] && : >"$NAP_ANSWERED"
    while :; do
        host=$(host)
        if [ -n "$host" ] && granted=$(etcd lease grant "$NAP_LEASE"); then
            granted=${granted#lease }
            lease=${granted%% *} written=
            etcdctl lease keep-alive "$lease" >/dev/null 2>&1 & # not by a function: that would be a shell to kill
            keeper=$!
            value="{\"host\": \"$host\", $reach$facts}"
            while write && each_check stays_ready readiness; do
                heedful sleep "$pause"
            done
            kill "$keeper" 2>/dev/null
            [ -z "$unready" ] || await_ready "$unready"
        fi
        heedful sleep 1
    done
}

stop_announcing() {
    if [ -n "$announcer" ]; then
        kill "$announcer" 2>/dev/null
        ended "$announcer"
    fi
    announcer='' announced=''
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
    announcer='' announced=''
    trap : TERM
    while read -r id event; do
        if [ "$event" = start ] || [ "$event" = unpause ]; then
            event=$(docker inspect --format '{{if .State.Health}}health_status: {{.State.Health.Status}}{{else}}start{{end}}' "$id" 2>/dev/null) || continue
        fi
        case $event in
            start | 'health_status: starting' | 'health_status: healthy')
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
                tell_unhealthy "$id"
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
