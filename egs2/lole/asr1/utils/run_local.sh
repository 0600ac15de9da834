#!/usr/bin/env bash
# Run a command on this machine with its output in a log: run_local.sh [--gpu N] LOG COMMAND ...
set -euo pipefail

while [[ ${1:-} == --* ]]; do
    shift 2
done
log=$1
shift
mkdir -p "$(dirname "${log}")"
{
    echo "# $*"
    echo "# started at $(date)"
} >"${log}"
started=${SECONDS}
status=0
"$@" >>"${log}" 2>&1 || status=$?
echo "# ended with code ${status} after $((SECONDS - started)) s" >>"${log}"
exit "${status}"
