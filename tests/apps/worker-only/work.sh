#!/bin/bash
trap 'echo "worker done"; exit 0' TERM
echo "worker ready"
while :; do sleep 1; done
