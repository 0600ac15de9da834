# How jobs are started: the back ends and variables of ESPnet's cmd.sh. local needs nothing. The scripts of the others are
# found on PATH or in an ESPnet checkout (ESPNET_ROOT or MAIN_ROOT), and conf/{slurm,queue,pbs}.conf name partitions,
# queues and limits of the cluster. Options of a script, such as "slurm.pl --time 2-00:00:00", may be given here.
# shellcheck shell=bash
cmd_backend=${cmd_backend:-local} # local, stdout, sge, pbs, slurm, ssh or jhu, from the environment

# train_cmd is for what needs no GPU, cuda_cmd for trainings, and decode_cmd for decodings without a GPU
case "${cmd_backend}" in
local) export train_cmd="lole_utils/run_local.sh" cuda_cmd="lole_utils/run_local.sh" decode_cmd="lole_utils/run_local.sh" ;;
stdout) export train_cmd="stdout.pl" cuda_cmd="stdout.pl" decode_cmd="stdout.pl" ;;
sge) export train_cmd="queue.pl" cuda_cmd="queue.pl" decode_cmd="queue.pl" ;;
pbs) export train_cmd="pbs.pl" cuda_cmd="pbs.pl" decode_cmd="pbs.pl" ;;
slurm) export train_cmd="slurm.pl" cuda_cmd="slurm.pl" decode_cmd="slurm.pl" ;;
ssh) export train_cmd="ssh.pl" cuda_cmd="ssh.pl" decode_cmd="ssh.pl" ;; # .queue/machines names the machines
jhu) # an example of options for one cluster
    export train_cmd="queue.pl --mem 2G"
    export cuda_cmd="queue-freegpu.pl --mem 2G --gpu 1 --config conf/queue.conf"
    export decode_cmd="queue.pl --mem 4G"
    ;;
*)
    echo "error: unknown cmd_backend '${cmd_backend}': choose local, stdout, sge, pbs, slurm, ssh or jhu" >&2
    return 1
    ;;
esac

for root in "${ESPNET_ROOT:-}" "${MAIN_ROOT:-}"; do
    [ -z "${root}" ] || export PATH="${PATH}:${root}/egs2/TEMPLATE/asr1/utils:${root}/utils"
done
for cmd in "${train_cmd}" "${cuda_cmd}" "${decode_cmd}"; do
    if ! command -v "${cmd%% *}" >/dev/null; then
        echo "error: cmd_backend ${cmd_backend} needs ${cmd%% *}, which is neither on PATH nor in an ESPnet checkout:" \
            "set ESPNET_ROOT to one, or put Kaldi's utils on PATH" >&2
        return 1
    fi
done
