#!/bin/sh
# Removes what the machine need not keep: the container; the app's images but the last three and those in use; and, of units that do not
# run, what is left when fleet takes a unit away that runs, as it does after it was out of touch with the machine.
over() {
    case $(systemctl show --property=ActiveState --value "$1") in inactive | failed) ;; *) return 1 ;; esac
}
docker rm --force --volumes "$NAP_CONTAINER" >/dev/null 2>&1
docker ps --all --filter label=nap.unit --format '{{.Names}} {{.Label "nap.unit"}}' | while read -r container unit; do
    over "$unit" && docker rm --force --volumes "$container" >/dev/null
done
systemctl list-units --all --state=not-found --plain --no-legend "$NAP_APP.v*" | while read -r unit _; do
    over "$unit" && systemctl reset-failed "$unit" && rm -rf "/run/nap/${unit%.service}"
done
docker images --quiet --no-trunc --filter "label=nap.app=$NAP_APP" | uniq | tail -n +4 | while read -r image; do
    docker rmi "$image" >/dev/null 2>&1
done
