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
case ${status} in
137) echo "error: killed by the system (signal 9): most often memory ran out; free some, or take smaller batches" ;;
129 | 13? | 14?) echo "error: ended by signal $((status - 128)) ($(kill -l "${status}"))" ;;
esac >>"${log}"
echo "# ended with code ${status} after $((SECONDS - started)) s" >>"${log}"
exit "${status}"
