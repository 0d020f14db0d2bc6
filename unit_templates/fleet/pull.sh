#!/bin/sh
# Pulls the image unless the machine has it. When that fails, why is left for report_exit.sh, which follows this.
docker image inspect "$NAP_IMAGE" >/dev/null 2>&1 && exit
NAP_ERROR=$(docker pull --quiet "$NAP_IMAGE" 2>&1) && exit
NAP_STATUS=125
