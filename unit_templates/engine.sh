#!/bin/sh
# Calls the engine's API: a path, and curl's own options; what goes with it comes on standard input where it is a
# tenant's. DOCKER_HOST says where the engine is, and may be unset.
engine() {
    path=$1 at=${DOCKER_HOST:-unix:///var/run/docker.sock}
    shift
    case $at in
        unix://*) set -- "$@" --unix-socket "${at#unix://}" "http://localhost$path" ;;
        *) set -- "$@" "http://${at#*://}$path" ;;
    esac
    curl --disable --noproxy '*' --silent --show-error --header 'Content-Type: application/json' "$@"
}
