#!/bin/sh
# Creates the container of an instance, as the body says that lies in etcd: nothing here looks into it, and what a tenant
# chose is in no argument and no environment. Follows engine.sh. `create` prints the container's id or, where it fails, why. From its
# environment:
#   NAP_BODY_KEY   the etcd key of the body of the engine's call (nap_receiver/engine/container.py)
#   NAP_CONTAINER  what the container is to be called
#   NAP_IMAGE      its image
#   NAP_NETWORK    the network of all such containers, who do not reach each other there; and how the machine calls it
#   NAP_BRIDGE
#   ETCDCTL_…      where etcd is, and the files for TLS, as for etcdctl

# What etcd has at the key, once it answers: it may start at the same time as the machine.
body() {
    tries=10
    until found=$(ETCDCTL_API=3 etcdctl --command-timeout=1s get --print-value-only "$NAP_BODY_KEY" 2>/dev/null) &&
        [ -n "$found" ]; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.5
    done
    printf %s "$found"
}

# Another one may make it at the same time, and who comes second is refused the name of the bridge.
network() {
    engine "/networks/$NAP_NETWORK" --fail >/dev/null 2>&1 && return
    engine /networks/create --data "{\"Name\": \"$NAP_NETWORK\", \"Driver\": \"bridge\", \"Options\":
        {\"com.docker.network.bridge.enable_icc\": \"false\", \"com.docker.network.bridge.name\": \"$NAP_BRIDGE\"}}"
}

pull() {
    docker image inspect "$NAP_IMAGE" >/dev/null 2>&1 || docker pull --quiet "$NAP_IMAGE" 2>&1
}

create() {
    said=$(pull) || { echo "$said" && return 1; }
    asked=$(body) || { echo 'etcd does not tell what its container is to be' && return 1; }
    network >/dev/null
    said=$(printf %s "$asked" |
        engine "/containers/create?name=$NAP_CONTAINER" --data-binary @- --write-out ' %{http_code}' 2>&1)
    case $said in
        *' 201') echo "$said" | sed -n 's/^{"Id":"\([0-9a-f]*\)".*/\1/p' ;;
        *) echo "$said" | sed -n '1s/^{"message":"\(.*\)"}$/\1/; 1s/\\"/"/g; 1p' && return 1 ;;
    esac
}
