#!/bin/sh
# Before an instance starts: a clean slate, and, if it ended before it ever answered, a wait of 1, 3, 7, 15 and then 30
# seconds. One that had answered starts again at once. systemd could only give it up for good, and what was wrong may be
# mended elsewhere.
set -u
cd "$RUNTIME_DIRECTORY" || exit
docker rm --force --volumes "$NAP_CONTAINER" >/dev/null 2>&1

if [ -e answered ] || [ ! -e delay ]; then
    delay=0
else
    delay=$(cat delay)
    delay=$((delay * 2 + 1))
    [ "$delay" -le 30 ] || delay=30
fi
echo "$delay" >delay
rm -f answered asked created
sleep "$delay"
