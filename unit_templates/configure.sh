#!/bin/sh
# Runs docker with what the release is configured with, as a shell's last deed: the arguments are those of docker, of
# which the first is create or run. docker takes the values from its environment, so that no value is ever in an argument
# list or in a unit. What is exported means nothing to this shell any more: all it does then is to become docker.
#   NAP_CONFIG_KEY  the etcd key of the configuration: {"NAME":"value in base64",…}
#   ETCDCTL_…       where etcd is, and the files for TLS, as for etcdctl
#   DOCKER_HOST     where the engine is; may be unset
config=$(ETCDCTL_API=3 etcdctl --command-timeout=3s get --print-value-only "$NAP_CONFIG_KEY") && [ -n "$config" ] || {
    echo "etcd does not tell what the release is configured with"
    exit 125
}
pairs=$(printf %s "$config" | tr -d '{}" \n' | tr , ' ')
names=
for pair in $pairs; do
    value=$(printf %s "${pair#*:}" | base64 -d && echo x)
    eval "configured_${pair%%:*}=\${value%x}"
    names="$names --env ${pair%%:*}"
done
verb=$1
shift
# Neither the engine nor any program that docker would start is the configuration's to choose.
set -- "$(command -v docker)" --host "${DOCKER_HOST:-unix:///var/run/docker.sock}" --config /nonexistent "$verb" $names "$@"
for pair in $pairs; do eval "export ${pair%%:*}=\"\$configured_${pair%%:*}\""; done
exec "$@"
