# Sourced by the recipe's scripts: messages, and jobs that end with the script. Options are those of the script.
# shellcheck shell=bash disable=SC2154

log() {
    echo "$(date '+%H:%M:%S') $*"
}

fail() {
    echo "error: $*" >&2
    exit 1
}

require() { # file $1, which a stage left: stop and say what to run ($2) if it is missing or empty
    [ -s "$1" ] || fail "$1 is missing or empty: $2"
}

make_folder() { # $1, or stop where no file can be written to it
    local probe
    if ! { mkdir -p "$1" && probe=$(mktemp -p "$1") && rm "${probe}"; } 2>/dev/null; then
        fail "cannot write to the folder $1: check its permissions and the disk's free space; nothing was changed"
    fi
}

fail_job() { # job $1, which ended with status $2: stop with the last error in its logs, the arguments after them
    local log lines message='' logs=("${@:3}")
    for log in "${@:3}"; do
        tail -n 3 "${log}" 2>/dev/null | grep -qE '^# .*\b(code|status) 0\b' && continue # another job's, which ended well
        # not the lines of gloo and srun on processes that ended because another one had failed
        lines=$(grep -ahE '^([a-z]+: )?error: |Error: .|Signal [0-9]+ .SIG(KILL|ABRT|SEGV|BUS)' "${log}" 2>/dev/null |
            grep -avE 'gloo/transport|^srun: error: .*: tasks? |CANCELLED AT [0-9T:-]+ \*\*\*' || true)
        [ -z "${lines}" ] || { message=${lines##*$'\n'} && logs=("${log}"); }
    done
    message=$(sed 's/^error: *//; s/^ *//' <<<"${message}")
    fail "$1 failed: ${message:-it ended with status $2}"$'\n'"log: ${logs[*]}"
}

start() { # a command in the background, as a process group that ends with this script
    set -m
    "$@" &
    set +m
}

stop_jobs() {
    local group groups hint=''
    [ "${resume:-true}" = true ] || hint=', without --resume false'
    groups=$(jobs -pr)
    for group in ${groups}; do kill -- "-${group}" 2>/dev/null || true; done
    [ -z "${groups}" ] || log "stopped: the same command resumes a training from its last epoch${hint}"
}
trap stop_jobs EXIT

show_progress() { # of process $1, a training in folder $2, until it ends
    local now shown=''
    while kill -0 "$1" 2>/dev/null; do
        sleep 1
        [ "$2/train.log" -nt "$2/launch.log" ] || continue # the log of an earlier training
        now=$(grep -aoE '[0-9]+/[0-9]+epoch started.*' "$2/train.log" | tail -n 1 || true)
        [ "${now}" = "${shown}" ] || log "  ${now}"
        shown=${now}
    done
}

nodes_are_processes() { # does this machine stand for all --num_nodes?
    [ "${num_nodes}" -gt 1 ] && [[ ${cmd_backend} =~ ^(local|stdout)$ ]]
}

restore_log() { # of an earlier training in folder $1, which ESPnet's launcher has renamed to train.1.log
    local number=1 name=$1/train.log
    while [ -e "$1/train.${number}.log" ]; do
        mv "$1/train.${number}.log" "${name}"
        name=$1/train.${number}.log
        number=$((number + 1))
    done
}

launch() { # train into folder $1 with module $2 and the options after it, through ESPnet's launcher
    local torchrun=() nodes=${num_nodes} threads=${OMP_NUM_THREADS} options=(--resume "${resume}" --seed "${seed}")
    local status logs=("$1/q/train.log" "$1/launch.log" "$1/train.log")
    options+=(--output_dir "$1")
    options+=(--train_shape_file "${raw}/${train_set}/utt2num_samples")
    options+=(--valid_shape_file "${raw}/${valid_set}/utt2num_samples")
    options+=(--train_data_path_and_name_and_type "${raw}/${train_set}/wav.scp,speech,sound")
    options+=(--train_data_path_and_name_and_type "${raw}/${train_set}/text,text,text")
    options+=(--valid_data_path_and_name_and_type "${raw}/${valid_set}/wav.scp,speech,sound")
    options+=(--valid_data_path_and_name_and_type "${raw}/${valid_set}/text,text,text")
    if nodes_are_processes; then
        torchrun=(-m torch.distributed.run --standalone --nproc_per_node "${nodes}")
        options+=(--dist_backend gloo)
        threads=$(((threads + nodes - 1) / nodes)) nodes=1
    fi
    make_folder "$1"
    OMP_NUM_THREADS=${threads} start "${python}" -m espnet2.bin.launch --cmd "${cuda_cmd}" --log "$1/train.log" \
        --ngpu "${ngpu}" --num_nodes "${nodes}" --init_file_prefix "$1/.dist_init_" \
        --multiprocessing_distributed true -- "${python}" "${torchrun[@]}" -m "$2" "${options[@]}" "${@:3}" \
        2>"$1/launch.log"
    show_progress "$!" "$1"
    wait "$!" || {
        status=$?
        if [ -e "$1/train.1.log" ] && ! grep -qs 'epoch started' "$1/train.log"; then
            restore_log "$1" # the start was refused, and its log is in launch.log, too
            logs=("$1/launch.log")
        fi
        fail_job training "${status}" "${logs[@]}"
    }
}
