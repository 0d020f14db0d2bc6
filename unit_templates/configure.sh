#!/bin/sh
# Runs docker with what the release is configured with, as a shell's last deed: the arguments are those of docker, of
# which the first is create or run. docker takes the values from its environment, so that no value is ever in an argument
# list or in a unit. What is exported means nothing to this shell any more: all it does then is to become docker.
#   NAP_CONFIG_KEY  the etcd key of the configuration: {"NAME":"value in base64",…}, and "bytes:value in base64" for what
#                   is no UTF-8
#   NAP_IMAGE       the image, as it stands among the arguments
#   ETCDCTL_…       where etcd is, and the files for TLS, as for etcdctl
#   DOCKER_HOST     where the engine is; may be unset
config=$(ETCDCTL_API=3 etcdctl --command-timeout=3s get --print-value-only "$NAP_CONFIG_KEY") && [ -n "$config" ] || {
    echo "etcd does not tell what the release is configured with"
    exit 125
}

# The engine is told in JSON, which carries UTF-8 alone. Other values come in octal, in pieces that an environment takes
# (execve(2): 128 KiB), and the container makes them whole before it becomes what its image runs.
restore='for NAP_NAME in $NAP_BYTES; do
    NAP_VALUE= NAP_NUMBER=1
    while eval "NAP_PIECE=\${NAP_BYTES_${NAP_NUMBER}_$NAP_NAME-}" && [ -n "$NAP_PIECE" ]; do
        NAP_VALUE=$NAP_VALUE$(printf %b "${NAP_PIECE}x")
        NAP_VALUE=${NAP_VALUE%x}
        unset "NAP_BYTES_${NAP_NUMBER}_$NAP_NAME"
        NAP_NUMBER=$((NAP_NUMBER + 1))
    done
    export "$NAP_NAME=$NAP_VALUE"
done
unset NAP_BYTES NAP_NAME NAP_VALUE NAP_NUMBER NAP_PIECE
exec "$@"'

names= bytes=
for pair in $(printf %s "$config" | tr -d '{}" \n' | tr , ' '); do
    name=${pair%%:*}
    case $pair in
        *:bytes:*)
            number=0
            for piece in $(printf %s "${pair#*:bytes:}" | base64 -d | od -An -v -to1 -w16384 | sed 's/ /\\0/g'); do
                number=$((number + 1))
                eval "configured_NAP_BYTES_${number}_$name=\$piece"
                names="$names NAP_BYTES_${number}_$name"
            done
            bytes="$bytes $name"
            ;;
        *)
            value=$(printf %s "${pair#*:}" | base64 -d && echo x)
            eval "configured_$name=\${value%x}"
            names="$names $name"
            ;;
    esac
done

# The words of the image's Entrypoint or Cmd, each in hexadecimal after an x.
of_image() {
    docker image inspect --format "{{range .Config.$1}}x{{printf \"%x\" .}} {{end}}" "$NAP_IMAGE"
}

has_shell() {
    container=$(docker create "$NAP_IMAGE" sh) || return
    docker cp "$container:/bin/sh" - >/dev/null 2>&1
    found=$?
    docker rm "$container" >/dev/null
    return $found
}

if [ -n "$bytes" ]; then
    docker image inspect "$NAP_IMAGE" >/dev/null 2>&1 || docker pull --quiet "$NAP_IMAGE" >/dev/null || exit 125
    has_shell || {
        echo "its image has no /bin/sh, without which no variable can be other than UTF-8, as are:$bytes"
        exit 125
    }
    left=$#
    while [ "$left" -gt 0 ]; do
        word=$1
        shift
        left=$((left - 1))
        if [ "$word" != "$NAP_IMAGE" ]; then
            set -- "$@" "$word"
            continue
        fi
        set -- "$@" --entrypoint /bin/sh --env "NAP_BYTES=$bytes" "$NAP_IMAGE" -c "$restore" sh
        for each in $(of_image Entrypoint) $([ "$left" -gt 0 ] || of_image Cmd); do
            word=$(env printf %b "$(echo "${each#x}" | sed 's/../\\x&/g')x")
            set -- "$@" "${word%x}"
        done
    done
fi

verb=$1
shift
options=
for name in $names; do options="$options --env $name"; done
# Neither the engine nor any program that docker would start is the configuration's to choose.
set -- "$(command -v docker)" --host "${DOCKER_HOST:-unix:///var/run/docker.sock}" --config /nonexistent "$verb" $options "$@"
for NAP_NAME in $names; do eval "export $NAP_NAME=\"\$configured_$NAP_NAME\""; done
exec "$@"
