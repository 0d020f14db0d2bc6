#!/bin/sh
# Tells etcd how an instance ended that nobody had asked to end: its status, and the last it said.
#
# The person whose push waits for the instance reads it there, without ssh to the machine. From its environment:
#   NAP_CONTAINER  the container, stopped but not yet removed; or, where it is gone, the next two
#   NAP_ERROR      why it did not start, or was ended; empty when neither
#   NAP_CHECK      the number of the check that it failed; 0 or unset when none
#   NAP_OUTPUT     the last lines it printed
#   NAP_EXIT_KEY   the etcd key to write; it goes by itself after ten minutes
#   NAP_STATUS     the exit status of docker run
set -u
export ETCDCTL_API=3

etcd() { etcdctl --command-timeout=3s "$@"; }
base64_line() { base64 | tr -d '\n'; }

# By time, because docker logs hands out standard output and standard error separately.
logs() { docker logs --timestamps --tail 20 "$NAP_CONTAINER" 2>&1 | sort --stable --key=1,1 | cut -d ' ' -f 2-; }

of_container() { docker inspect --format "$1" "$NAP_CONTAINER" 2>&1; }

# The engine tells of this by an event, which may come after that of the end, and is in no state of the container's then.
out_of_memory() {
    case $(of_container '{{.State.OOMKilled}} {{.HostConfig.Memory}}') in
        true*) return 0 ;;
        false' '0) return 1 ;;
    esac
    [ "$NAP_STATUS" = 137 ] || return 1
    now=$(date +%s)
    [ -n "$(docker events --since "$((now - 10))" --until "$((now + 1))" --format oom \
        --filter "container=$NAP_CONTAINER" --filter event=oom 2>/dev/null)" ]
}

failure() {
    if out_of_memory; then
        of_container 'it used more memory than the {{.HostConfig.Memory}} bytes that it may'
    else
        of_container '{{.State.Error}}'
    fi
}

error=$(echo "${NAP_ERROR-$(failure)}" | base64_line)
output=$(echo "${NAP_OUTPUT-$(logs)}" | tail -c 8000 | base64_line)
lease=$(etcd lease grant 600) || exit
lease=${lease#lease }
printf '{"status": %d, "check": %d, "error": "%s", "output": "%s"}' "$NAP_STATUS" "${NAP_CHECK:-0}" "$error" "$output" |
    etcd put --lease="${lease%% *}" "$NAP_EXIT_KEY" >/dev/null
