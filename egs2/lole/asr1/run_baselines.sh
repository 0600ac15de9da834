#!/usr/bin/env bash
# Baselines on the data of run.sh: multilingual LoRAs, a student trained for longer, full fine-tuning, ESPnet's own
# Conformer, and ESPnet's own Whisper with its own LoRA.
# Usage: ./run_baselines.sh [options]
set -euo pipefail

stage=5              # first stage to run: 2 perturbs the speed, 5 lists tokens, 11 trains, 12 decodes, 13 scores
stop_stage=13        # last stage to run
baselines="multilingual multilingual_r64 student_long full espnet espnet_whisper" # what to train and decode
systems="zero_shot experts mole student" # what run.sh has decoded, to score in the same table
run_args=            # more options for run.sh, e.g. "--num_nodes 2"

# ESPnet's own models
token_type=bpe       # tokens of espnet: bpe (sentencepiece's unigrams) or char
nbpe=500             # number of tokens of bpe, language tags included
whisper_python=      # Python of espnet_whisper; empty: that of make env-espnet-whisper, if it was made, else --python
espnet_inference_config=conf/decode_espnet.yaml # asr_inference of espnet
whisper_inference_config=conf/decode_espnet_whisper.yaml # asr_inference of espnet_whisper

# As in lole.sh
corpus=conf/corpora/lole_mini.yaml     # YAML file of the corpus
backbone=models/whisper-nano  # Whisper: a name on the hub, a transformers folder, or a .pt file of OpenAI
speed_perturb_factors=                 # e.g. "0.9 1.0 1.1", made in stages 2 to 4; empty: none
asr_config=conf/mini/train.yaml        # shared configuration; that of ESPnet's asr_train is <this>_espnet.yaml
inference_config=conf/mini/decode.yaml # configuration of the decoding
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

run_stage() { # is stage $1 to be run?
    [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ]
}

recipe() { # run.sh, from stage $1 to stage $2, on the systems $3
    [ -n "${3// /}" ] || return 0
    # shellcheck disable=SC2086  # options
    start ./run.sh --corpus "${corpus}" --backbone "${backbone}" --speed_perturb_factors "${speed_perturb_factors}" \
        --asr_config "${asr_config}" --inference_config "${inference_config}" --ngpu "${ngpu}" \
        --gpu_inference "${gpu_inference}" --dumpdir "${dumpdir}" --expdir "${expdir}" --python "${python}" \
        --seed "${seed}" --resume "${resume}" ${run_args} --stage "$1" --stop_stage "$2" --systems "$3"
    wait "$!"
}

is_whisper() { # is $1 ESPnet's own Whisper, or a variant of it?
    [[ $1 = espnet_whisper* ]]
}

experiment() { # folder of ESPnet's own model $1
    echo "${expdir}/lole_$(basename "${asr_config}" .yaml)_$1_raw_$(basename "${corpus%.*}")${perturbed}_seed${seed}"
}

prepare() { # the data of ESPnet's own model $1, and its tokens, as stage 5 of ESPnet's asr.sh
    local data=${dumpdir}/$1 options=(--token_type "${token_type}" --nbpe "${nbpe}" --token_dir "${token_dir}")
    local log=${dumpdir}/token_list/$1.log
    make_folder "${dumpdir}/token_list"
    is_whisper "$1" && options=(--backbone "${backbone}" --pt "${data}/${backbone_name}.pt")
    "${python}" -m espnet_lole.bin.lole_espnet_data --src "${raw}/${train_set}" "${raw}/${valid_set}" \
        --dst "${data}/${train_set}" "${data}/${valid_set}" "${options[@]}" >"${log}" 2>&1 ||
        fail_job "preparing $1" "$?" "${log}"
    ! is_whisper "$1" || "${whisper_python}" -m espnet2.bin.whisper_export_vocabulary \
        --whisper_model whisper_multilingual --output "${whisper_tokens}" >>"${log}" 2>&1 ||
        fail_job "listing Whisper's tokens" "$?" "${log}"
}

train() { # ESPnet's own model $1, by its asr_train
    local exp data=${dumpdir}/$1 name interpreter=${python} options
    exp=$(experiment "$1")
    if is_whisper "$1"; then
        interpreter=${whisper_python} options=(--token_list "${whisper_tokens}")
        options+=(--train_data_path_and_name_and_type "${data}/${train_set}/prompt,prompt,text")
        options+=(--valid_data_path_and_name_and_type "${data}/${valid_set}/prompt,prompt,text")
        for name in encoder decoder; do
            options+=("--${name}_conf" "whisper_model=${backbone_name}" "--${name}_conf" "download_dir=${data}")
        done
    else
        options=(--token_type "${token_type}" --token_list "${token_dir}/tokens.txt")
        case ${token_type} in
        bpe) options+=(--bpemodel "${token_dir}/bpe.model") ;;
        char) options+=(--non_linguistic_symbols "${token_dir}/nlsyms.txt") ;;
        esac
    fi
    log "$1: ${exp}, log in ${exp}/train.log"
    raw=${data} python=${interpreter} launch "${exp}" espnet_lole.bin.lole_espnet_train \
        --config "${asr_config%.yaml}_$1.yaml" "${options[@]}"
}

decode() { # ESPnet's own model $1, by its asr_inference
    local out cmd=${decode_cmd} inference_ngpu=0 interpreter=${python} config=${espnet_inference_config}
    local scenarios=(agnostic)
    ! is_whisper "$1" || { interpreter=${whisper_python} config=${whisper_inference_config} scenarios+=(aware); }
    [ "${gpu_inference}" = false ] || { cmd=${cuda_cmd} && inference_ngpu=1; }
    out=$(experiment "$1")/${inference_tag}
    log "$1: ${out}_<scenario>/<test set>, log in ${out}.log"
    # shellcheck disable=SC2086  # a command and its options
    start ${cmd} --gpu "${inference_ngpu}" "${out}.log" \
        "${interpreter}" -m espnet_lole.bin.lole_espnet --ngpu "${inference_ngpu}" --config "${config}" \
        --asr_model_file "$(experiment "$1")/valid.acc.ave.pth" --test_dirs "${raw}"/test_* --output_dir "${out}" \
        --scenarios "${scenarios[@]}"
    wait "$!" || fail_job decoding "$?" "${out}.log"
}

[[ ${token_type} = bpe || ${token_type} = char ]] || fail "--token_type takes bpe or char"
[[ ${nbpe} =~ ^[1-9][0-9]*$ ]] || fail "--nbpe takes a number from 1"
perturbed=${speed_perturb_factors:+_sp}
raw=${dumpdir}/raw train_set=train${perturbed} valid_set=dev num_nodes=1
inference_tag=$(basename "${inference_config}" .yaml)
token_dir=${dumpdir}/token_list/${token_type}$([ "${token_type}" = char ] || echo "_unigram${nbpe}")
whisper_tokens=${dumpdir}/token_list/whisper_multilingual/tokens.txt
backbone_name=$(basename "${backbone%.pt}")
if [ -z "${whisper_python}" ]; then
    whisper_python=${LOLE_ROOT:-.}/.venv-espnet-whisper/bin/python
    [ -x "${whisper_python}" ] || whisper_python=${python}
fi
others='' own=() # trained by lole.sh, and by ESPnet
for system in ${baselines}; do
    case ${system} in
    espnet | espnet_*) own+=("${system}") && require "${asr_config%.yaml}_${system}.yaml" "it configures ${system}" ;;
    *) others+="${system} " ;;
    esac
    if is_whisper "${system}" && [ "${stage}" -le 12 ] &&
        ! "${whisper_python}" -c "import loralib; from whisper.audio import N_MELS" 2>/dev/null; then
        fail "${system} needs loralib and the Whisper of ESPnet's installer: run 'make env-espnet-whisper', name a" \
            "Python that has them (--whisper_python), or leave it out (--baselines)"
    fi
done

if run_stage 2 && [ -n "${speed_perturb_factors}" ]; then
    recipe 2 4 "${others:-zero_shot}"
fi
if run_stage 5; then
    for system in "${own[@]}"; do prepare "${system}"; done
fi
if run_stage 11; then
    recipe 11 11 "${others}"
    for system in "${own[@]}"; do train "${system}"; done
fi
if run_stage 12; then
    recipe 12 12 "${others}"
    for system in "${own[@]}"; do decode "${system}"; done
fi
if run_stage 13; then
    recipe 13 13 "${systems} ${baselines}"
fi
