#!/usr/bin/env bash
# Baselines on the data of run.sh: multilingual LoRAs, a student trained for longer, full fine-tuning, ESPnet itself.
# Usage: ./run_baselines.sh [options]
set -euo pipefail

stage=11             # first stage to run: 11 trains, 12 decodes, 13 scores
stop_stage=13        # last stage to run
baselines="multilingual multilingual_r64 student_long full espnet" # what to train and decode
systems="zero_shot experts mole student" # what run.sh has decoded, to score in the same table
run_args=            # more options for run.sh, e.g. "--backbone openai/whisper-medium --num_nodes 2"

# As in lole.sh
corpus=conf/corpora/lole_mini.yaml     # YAML file of the corpus
asr_config=conf/mini/train.yaml        # shared configuration; that of ESPnet's asr_train is <this>_espnet.yaml
inference_config=conf/mini/decode.yaml # configuration of the decoding
espnet_inference_config=conf/decode_espnet.yaml # configuration of ESPnet's asr_inference
ngpu=0               # number of GPUs per node; 0: train on the CPU
gpu_inference=false  # true: decode on a GPU
dumpdir=dump         # folder of the formatted data
expdir=exp           # folder of the experiments
python=python3       # Python interpreter
seed=0               # random seed of the training
resume=true          # false: train again; earlier trainings are moved to <experiment>.1, .2 ...

# shellcheck disable=SC1091
. lole_utils/parse_options.sh
# shellcheck disable=SC1091
. ./path.sh
# shellcheck disable=SC1091
. ./cmd.sh
. lole_utils/jobs.sh

recipe() { # run.sh, from stage $1 to stage $1, on the systems $2
    [ -n "${2// /}" ] || return 0
    # shellcheck disable=SC2086  # options
    start ./run.sh --corpus "${corpus}" --asr_config "${asr_config}" --inference_config "${inference_config}" \
        --ngpu "${ngpu}" --gpu_inference "${gpu_inference}" --dumpdir "${dumpdir}" --expdir "${expdir}" \
        --python "${python}" --seed "${seed}" --resume "${resume}" ${run_args} --stage "$1" --stop_stage "$1" \
        --systems "$2"
    wait "$!"
}

train_espnet() { # ESPnet's own model by its asr_train, with the characters of the training text as its vocabulary
    local tokens=${dumpdir}/token_list/char/tokens.txt
    make_folder "$(dirname "${tokens}")"
    "${python}" -m espnet2.bin.tokenize_text --token_type char --field 2- --input "${raw}/${train_set}/text" \
        --output "${tokens}" --write_vocabulary true --add_symbol "<blank>:0" --add_symbol "<unk>:1" \
        --add_symbol "<sos/eos>:-1" >"${tokens%.txt}.log" 2>&1 || fail_job "the token list" "$?" "${tokens%.txt}.log"
    log "espnet: ${espnet_exp}, log in ${espnet_exp}/train.log"
    launch "${espnet_exp}" espnet_lole.bin.lole_espnet_train --config "${asr_config%.yaml}_espnet.yaml" \
        --token_list "${tokens}"
}

decode_espnet() { # by ESPnet's asr_inference
    local out=${espnet_exp}/${inference_tag} cmd=${decode_cmd} inference_ngpu=0
    [ "${gpu_inference}" = false ] || { cmd=${cuda_cmd} && inference_ngpu=1; }
    log "espnet: ${out}_agnostic/<test set>, log in ${out}.log"
    # shellcheck disable=SC2086  # a command and its options
    start ${cmd} --gpu "${inference_ngpu}" "${out}.log" \
        "${python}" -m espnet_lole.bin.lole_espnet --ngpu "${inference_ngpu}" --config "${espnet_inference_config}" \
        --asr_model_file "${espnet_exp}/valid.acc.ave.pth" --test_dirs "${raw}"/test_* --output_dir "${out}_agnostic"
    wait "$!" || fail_job decoding "$?" "${out}.log"
}

raw=${dumpdir}/raw train_set=train valid_set=dev num_nodes=1
inference_tag=$(basename "${inference_config}" .yaml)
espnet_exp=${expdir}/lole_$(basename "${asr_config}" .yaml)_espnet_raw_$(basename "${corpus%.*}")_seed${seed}
others=${baselines/espnet/}

if [ "${stage}" -le 11 ] && [ "${stop_stage}" -ge 11 ]; then
    recipe 11 "${others}"
    [ "${others}" = "${baselines}" ] || train_espnet
fi
if [ "${stage}" -le 12 ] && [ "${stop_stage}" -ge 12 ]; then
    recipe 12 "${others}"
    [ "${others}" = "${baselines}" ] || decode_espnet
fi
if [ "${stage}" -le 13 ] && [ "${stop_stage}" -ge 13 ]; then
    recipe 13 "${systems} ${baselines}"
fi
