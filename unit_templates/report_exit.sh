#!/bin/sh
# Tells etcd how an instance ended that nobody had asked to end: its status, and the last it said.
#
# The person whose push waits for the instance reads it there, without ssh to the machine. From its environment:
#   NAP_CONTAINER  the container, stopped but not yet removed; or, where it is gone, the next two
#   NAP_ERROR      why it did not start, or was ended; empty when neither
#   NAP_OUTPUT     the last lines it printed
#   NAP_EXIT_KEY   the etcd key to write; it goes by itself after ten minutes
#   NAP_STATUS     the exit status of docker run
set -u
export ETCDCTL_API=3

etcd() { etcdctl --command-timeout=3s "$@"; }
base64_line() { base64 | tr -d '\n'; }

# By time, because docker logs hands out standard output and standard error separately.
logs() { docker logs --timestamps --tail 20 "$NAP_CONTAINER" 2>&1 | sort --stable --key=1,1 | cut -d ' ' -f 2-; }

failure='{{if .State.OOMKilled}}it used more memory than the {{.HostConfig.Memory}} bytes that it may{{else}}{{.State.Error}}{{end}}'
error=$(echo "${NAP_ERROR-$(docker inspect --format "$failure" "$NAP_CONTAINER" 2>&1)}" | base64_line)
output=$(echo "${NAP_OUTPUT-$(logs)}" | tail -c 8000 | base64_line)
lease=$(etcd lease grant 600) || exit
lease=${lease#lease }
printf '{"status": %d, "error": "%s", "output": "%s"}' "$NAP_STATUS" "$error" "$output" |
    etcd put --lease="${lease%% *}" "$NAP_EXIT_KEY" >/dev/null
