#!/usr/bin/env bash
# Language experts from data to a table of error rates; stages 1-5 and 10-13 mean what they mean in ESPnet's asr.sh.
set -euo pipefail

stage=1              # first stage to run
stop_stage=13        # last stage to run
skip_stages=         # stages to leave out, e.g. "2 3"
corpus=              # YAML: language -> Kaldi directories
langs=               # only these languages, e.g. "de en"; empty: all of the corpus
backbone=            # hub name or folder of a transformers Whisper
systems="zero_shot experts" # what to train and decode
ngpu=0               # GPUs a node
num_nodes=1          # nodes
nj=4                 # threads and processes of the data preparation
gpu_inference=false  # decode on a GPU
dumpdir=dump         # formatted data
expdir=exp           # experiments
python=python3       # the interpreter
local_data_opts=     # options for local/data.sh
audio_format=flac    # flac or wav
min_wav_duration=0.1 # seconds; shorter training audio is dropped
max_wav_duration=30  # seconds; longer training audio is dropped
asr_config=          # training configuration
asr_args=            # more training options, e.g. "--max_epoch 3"
asr_tag=             # name of the experiment; empty: from the configuration
inference_config=    # decoding configuration
inference_asr_model=valid.acc.ave.pth # checkpoint to decode
seed=0               # of training

log() { echo "$(date '+%H:%M:%S') $*"; }
fail() {
    echo "error: $*" >&2
    exit 1
}

# shellcheck disable=SC1091
. utils/parse_options.sh
# shellcheck disable=SC1091
. ./path.sh
# shellcheck disable=SC1091
. ./cmd.sh
export python

for required in corpus backbone asr_config inference_config; do
    [ -n "${!required}" ] || fail "expected --${required}, got none: start from run.sh"
done
for system in ${systems}; do
    case "${system}" in
    zero_shot | experts) ;;
    *) fail "expected systems of: zero_shot experts, got '${system}'" ;;
    esac
done

config_name=$(basename "${asr_config}" .yaml)
tag=${asr_tag:-${config_name}_raw_$(basename "${corpus}" .yaml)_seed${seed}}
inference_tag=$(basename "${inference_config}" .yaml)
stats_dir=${expdir}/lole_stats_raw
experts_exp=${expdir}/lole_${tag}
zero_shot_exp=${expdir}/lole_zero_shot_$(basename "${backbone}")
raw=${dumpdir}/raw
because() { # the last error in log $1, and where the log is
    grep -aE '^error: |Error: ' "$1" | tail -n 1 || true
    echo "log: $1"
}
runs() { # is stage $1 to be run? Says so.
    [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ] && [[ " ${skip_stages} " != *" $1 "* ]] || return 1
    log "Stage $1: $2"
}
test_sets() { # names of the formatted test sets
    local found=("${raw}"/test_*/wav.scp)
    [ -e "${found[0]}" ] || fail "expected formatted test sets in ${raw}, found none: run stage 3"
    for scp in "${found[@]}"; do
        name=$(basename "$(dirname "${scp}")")
        if [ -z "${langs}" ] || [[ " ${langs} " == *" ${name#test_} "* ]]; then echo "${name}"; fi
    done
}
languages() { # languages of the training set
    [ -s "${raw}/train/utt2lang" ] || fail "expected ${raw}/train/utt2lang, found none: run stages 1 to 4"
    cut -d' ' -f2 "${raw}/train/utt2lang" | sort -u | tr '\n' ' '
}

if runs 1 "data of ${corpus} to data/"; then
    # shellcheck disable=SC2086  # options
    local/data.sh --corpus "${corpus}" --langs "${langs}" --nj "${nj}" ${local_data_opts}
fi

if runs 2 "speed perturbation: none here, see README.md"; then :; fi

if runs 3 "audio to 16 kHz mono ${audio_format} in ${raw}"; then
    for dset in data/train data/dev data/test_*; do
        [ -d "${dset}" ] || fail "expected ${dset}, found none: run stage 1"
        name=$(basename "${dset}")
        case "${name}" in train | dev) dst=${raw}/org/${name} ;; *) dst=${raw}/${name} ;; esac
        ${python} -m espnet_lole.bin.lole_data format --src "${dset}" --dst "${dst}" --audio_format "${audio_format}" --nj "${nj}"
    done
fi

if runs 4 "drop training audio outside ${min_wav_duration}-${max_wav_duration} s"; then
    for name in train dev; do
        ${python} -m espnet_lole.bin.lole_data filter --src "${raw}/org/${name}" --dst "${raw}/${name}" \
            --min_wav_duration "${min_wav_duration}" --max_wav_duration "${max_wav_duration}" --langs "${langs}"
    done
fi

if runs 5 "token list: Whisper's own vocabulary, nothing to make"; then :; fi

if runs 10 "lengths of the utterances to ${stats_dir}"; then
    for pair in train:train dev:valid; do
        src=${raw}/${pair%%:*}
        [ -s "${src}/utt2num_samples" ] || fail "expected ${src}/utt2num_samples, found none: run stages 1 to 4"
        mkdir -p "${stats_dir}/${pair##*:}"
        cp "${src}/utt2num_samples" "${stats_dir}/${pair##*:}/speech_shape"
        awk '{u[$2] = u[$2] " " $1} END {for (l in u) print l u[l]}' "${src}/utt2lang" | sort >"${src}/category2utt"
    done
fi

if runs 11 "train"; then
    if [[ " ${systems} " == *" experts "* ]]; then
        for pair in train:train dev:valid; do
            [ -s "${stats_dir}/${pair##*:}/speech_shape" ] || fail "expected ${stats_dir}/${pair##*:}/speech_shape: run stage 10"
        done
        langs_found=$(languages)
        data_options=()
        for pair in train:train dev:valid; do
            src=${raw}/${pair%%:*}
            data_options+=(--"${pair##*:}"_data_path_and_name_and_type "${src}/wav.scp,speech,sound")
            data_options+=(--"${pair##*:}"_data_path_and_name_and_type "${src}/text,text,text")
            data_options+=(--"${pair##*:}"_data_path_and_name_and_type "${src}/utt2lang,lang,text")
            data_options+=(--"${pair##*:}"_shape_file "${stats_dir}/${pair##*:}/speech_shape")
        done
        log "experts of ${langs_found}: ${experts_exp}, log in ${experts_exp}/train.log"
        # shellcheck disable=SC2086  # lists and options
        ${python} -m espnet2.bin.launch --cmd "${cuda_cmd}" --log "${experts_exp}/train.log" --ngpu "${ngpu}" \
            --num_nodes "${num_nodes}" --init_file_prefix "${experts_exp}/.dist_init_" --multiprocessing_distributed true -- \
            ${python} -m espnet_lole.bin.lole_train --config "${asr_config}" --backbone "${backbone}" --langs ${langs_found} \
            --resume true --seed "${seed}" --output_dir "${experts_exp}" "${data_options[@]}" ${asr_args} &
        trainer=$!
        shown=
        while kill -0 "${trainer}" 2>/dev/null; do
            sleep 2
            now=$(grep -ahoE '[0-9]+/[0-9]+epoch started.*' "${experts_exp}/train.log" 2>/dev/null | tail -n 1 || true)
            [ "${now}" = "${shown}" ] || log "  ${now}"
            shown=${now}
        done
        wait "${trainer}" || fail "training failed: $(because "${experts_exp}/train.log")"
        ${python} -m espnet_lole.bin.lole_export --asr_model_file "${experts_exp}/${inference_asr_model}" --output_dir "${experts_exp}/adapters"
    fi
fi

if runs 12 "decode with ${inference_config}"; then
    mapfile -t sets < <(test_sets)
    inference_ngpu=0
    [ "${gpu_inference}" = true ] && inference_ngpu=1
    for system in ${systems}; do
        case "${system}" in
        zero_shot) out=${zero_shot_exp}/${inference_tag} model=(--backbone "${backbone}") ;;
        experts) out=${experts_exp}/${inference_tag} model=(--asr_model_file "${experts_exp}/${inference_asr_model}") ;;
        esac
        log "${system}: ${#sets[@]} test sets to ${out}, log in ${out}/decode.log"
        ${decode_cmd} --gpu "${inference_ngpu}" "${out}/decode.log" \
            "${python}" -m espnet_lole.bin.lole_inference --ngpu "${inference_ngpu}" --config "${inference_config}" "${model[@]}" \
            --test_dirs "${sets[@]/#/${raw}/}" --output_dir "${out}" || fail "decoding failed: $(because "${out}/decode.log")"
    done
fi

if runs 13 "score"; then
    decoded=()
    for system in ${systems}; do
        case "${system}" in
        zero_shot) decoded+=(--decoded "zero_shot:aware:${zero_shot_exp}/${inference_tag}") ;;
        experts) decoded+=(--decoded "experts:aware:${experts_exp}/${inference_tag}") ;;
        esac
    done
    ${python} -m espnet_lole.bin.lole_score --expdir "${expdir}" --dumpdir "${raw}" --test_sets "$(test_sets | tr '\n' ' ')" \
        --seed "${seed}" "${decoded[@]}"
    log "results: ${expdir}/RESULTS.md and ${expdir}/results.csv"
fi
