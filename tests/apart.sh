#!/bin/sh
# Runs a command on a network of its own: addresses, ports, interfaces and firewall rules are nobody else's, as on
# another computer. There is no way out of it. Needs root.
#
# usage: tests/apart.sh COMMAND [ARGUMENT…]
exec unshare --net --mount sh -euc '
ip link set lo up
# What it shows of the network is that of whoever mounted it.
new=$(mktemp -d)
mount -t sysfs sysfs "$new"
for inner in fs/cgroup kernel/security; do
    [ ! -d "/sys/$inner" ] || mount --rbind "/sys/$inner" "$new/$inner"
done
mount --move "$new" /sys
rmdir "$new"
# An engine that runs already is on the network outside.
unset DOCKER_HOST
[ ! -S /var/run/docker.sock ] || mount --bind /dev/null /var/run/docker.sock
exec "$@"' sh "$@"
