#!/bin/sh
# Removes what the machine need not keep: the app's images but the last three and those in use, and containers whose
# unit does not run, such as fleet leaves behind when it takes a unit away that would not end.
docker ps --all --filter label=nap.unit --format '{{.Names}} {{.Label "nap.unit"}}' | while read -r container unit; do
    case $(systemctl show --property=ActiveState --value "$unit") in
        inactive | failed) docker rm --force "$container" >/dev/null ;;
    esac
done
docker images --quiet --no-trunc --filter "label=nap.app=$NAP_APP" | uniq | tail -n +4 | while read -r image; do
    docker rmi "$image" >/dev/null 2>&1
done
