#!/bin/sh
# Pulls the image unless the machine has it. When that fails, why is left for report_exit.sh, which follows this.
set -u
pulled() {
    : >"$RUNTIME_DIRECTORY/pulled"
    exit
}
docker image inspect "$NAP_IMAGE" >/dev/null 2>&1 && pulled
NAP_ERROR=$(docker pull --quiet "$NAP_IMAGE" 2>&1) && pulled
NAP_STATUS=125 NAP_OUTPUT=
