#!/usr/bin/env bash
# Run a command on this machine with its output in a log, or several at the same time, as Kaldi's run.pl does:
# run_local.sh [--gpu N] [JOB=1:4] LOG COMMAND ...
# JOB in the log's name and in the command is replaced by the number of the job. Jobs share the threads. With --gpu 1,
# each of several jobs has a GPU of its own, and waits for one where there are fewer.
set -euo pipefail

gpu=0 name='' jobs=1
while [[ ${1:-} == --* ]]; do
    [ "$1" != --gpu ] || gpu=$2
    shift 2
done
if [[ $1 =~ ^([A-Za-z_]+)=1:([0-9]+)$ ]]; then
    name=${BASH_REMATCH[1]} jobs=${BASH_REMATCH[2]}
    shift
fi

run() { # the command after the log $1
    local status=0 started=${SECONDS}
    mkdir -p "$(dirname "$1")"
    printf '# %s\n# started at %s\n' "${*:2}" "$(date)" >"$1"
    "${@:2}" >>"$1" 2>&1 || status=$?
    case ${status} in
    137) echo "error: killed by the system (signal 9): most often memory ran out; free some, or take smaller batches" ;;
    129 | 13? | 14?) echo "error: ended by signal $((status - 128)) ($(kill -l "${status}"))" ;;
    esac >>"$1"
    echo "# ended with code ${status} after $((SECONDS - started)) s" >>"$1"
    return "${status}"
}

work() { # jobs $1, $1 + ${workers}, ... one after the other: the log and the command after it
    local job words status=0
    [ "${#gpus[@]}" -eq 0 ] || export CUDA_VISIBLE_DEVICES=${gpus[$1 - 1]}
    for ((job = $1; job <= jobs; job += workers)); do
        words=("${@:2}")
        [ -z "${name}" ] || words=("${words[@]//"${name}"/${job}}")
        run "${words[@]}" || status=$?
    done
    return "${status}"
}

gpus=() workers=${jobs}
if [ "${jobs}" -gt 1 ] && [ "${gpu}" -gt 0 ]; then
    found=${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)}
    IFS=, read -ra gpus <<<"${found:-0}"
    [ "${#gpus[@]}" -ge "${jobs}" ] || workers=${#gpus[@]}
fi
threads=${OMP_NUM_THREADS:-$(nproc)}
export OMP_NUM_THREADS=$(((threads + workers - 1) / workers))

started=() status=0
for ((worker = 1; worker <= workers; worker++)); do
    work "${worker}" "$@" &
    started+=("$!")
done
for worker in "${started[@]}"; do
    wait "${worker}" || status=$?
done
exit "${status}"
