#!/bin/sh
# Removes what the machine need not keep: the app's images but the last three and those in use, and containers that a
# power cut left behind.
docker container prune --force --filter label=nap.app --filter until=10m >/dev/null
docker images --quiet --no-trunc --filter "label=nap.app=$NAP_APP" | uniq | tail -n +4 | while read -r image; do
    docker rmi "$image" >/dev/null 2>&1
done
