# How jobs are started. local: on this machine. slurm: through slurm.pl of Kaldi or of an ESPnet checkout, on PATH.
# shellcheck shell=bash
cmd_backend=${cmd_backend:-local}

case "${cmd_backend}" in
local)
    export train_cmd="utils/run_local.sh" cuda_cmd="utils/run_local.sh" decode_cmd="utils/run_local.sh"
    ;;
slurm)
    export train_cmd="slurm.pl" cuda_cmd="slurm.pl" decode_cmd="slurm.pl"
    ;;
*)
    echo "error: expected cmd_backend local or slurm, got '${cmd_backend}': set it in the environment" >&2
    return 1
    ;;
esac
