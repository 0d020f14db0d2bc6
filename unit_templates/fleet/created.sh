#!/bin/sh
# Creates the container. When that fails, why is left for report_exit.sh, which follows this.
# shellcheck disable=SC2034 # report_exit.sh, which follows, reads them
set -u
if NAP_ERROR=$(create); then
    : >"$RUNTIME_DIRECTORY/created"
    exit
fi
NAP_STATUS=125 NAP_OUTPUT=
