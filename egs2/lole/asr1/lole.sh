#!/usr/bin/env bash
# Language experts, MoLE and a student, from data to a table of error rates, in the stages of ESPnet's asr.sh.
# Usage: ./lole.sh --corpus FILE --backbone NAME [options]
set -euo pipefail

# General
stage=1              # first stage to run
stop_stage=10000     # last stage to run
skip_stages=         # stages to leave out, e.g. "2 3"
skip_data_prep=false # true: leave out stages 1 to 5
skip_train=false     # true: train nothing; decode and score what is trained, and prepare only what that needs
skip_eval=false      # true: leave out stages 12 and 13
skip_packing=true    # false: pack the trained systems in stage 14
skip_upload_hf=true  # false: upload the trained system to --hf_repo in stage 15
ngpu=0               # number of GPUs per node; 0: train on the CPU
num_nodes=1          # number of nodes; with cmd_backend=local: of training processes, which share the threads
nj=4                 # number of parallel jobs in data preparation
inference_nj=1       # number of parallel jobs in decoding
gpu_inference=false  # true: decode on a GPU
dumpdir=dump         # folder of the formatted data
expdir=exp           # folder of the experiments
python=python3       # Python interpreter

# Data
corpus=              # CSV, TSV or JSONL with path, text and language; or YAML that names data of each language
langs=               # languages to use, e.g. "de en"; empty: all languages of the corpus
train_set=train      # name of the training set
valid_set=dev        # name of the validation set
test_sets=           # names of the test sets; empty: test_<language> of each language
eval_valid_set=false # true: decode and score the validation set, too; it does not count in averages
local_data_opts=     # options for local/data.sh
speed_perturb_factors= # e.g. "0.9 1.0 1.1"; empty: none
audio_format=flac    # flac or wav
min_wav_duration=0.1 # in seconds; shorter training audio is dropped
max_wav_duration=30.0 # in seconds; longer training audio is dropped

# Training
backbone=            # Whisper: a name on the hub, a transformers folder, or a .pt file of OpenAI
systems="zero_shot experts mole student" # in the order of training; also multilingual, full, and variants: student_long
asr_config=conf/train.yaml # configuration of all systems; conf/train_<system>.yaml overrides it
asr_args=            # more training options, e.g. "--max_epoch 10"
asr_tag=             # name of the experiment, if one system is trained; empty: from its configuration
asr_exp=             # folder of the experiment, if one system is trained; --asr_tag is then ignored
seed=0               # random seed of the training
resume=true          # false: train again; earlier trainings are moved to <experiment>.1, .2 ...

# Decoding
inference_config=conf/decode.yaml # configuration of the decoding
inference_args=      # more decoding options, e.g. "--batch_seconds 60"
inference_tag=       # name of the decoding; empty: from its configuration and options

# Upload
hf_repo=             # repository on the Hugging Face hub, <user>/<model>

# Scoring
normalize=whisper_marks # normalisation of the texts: whisper_marks, whisper, none, or a cleaner of ESPnet

command="./$(basename "$0")$(printf ' %q' "$@")"
# shellcheck disable=SC1091
. lole_utils/parse_options.sh
# shellcheck disable=SC1091
. ./path.sh
# shellcheck disable=SC1091
. ./cmd.sh
. lole_utils/jobs.sh

run_stage() { # is stage $1 to be run? Prints its title $2
    [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ] && [[ " ${skip_stages} " != *" $1 "* ]] || return 1
    log "Stage $1: $2"
}

base_system() { # the system that $1 is a variant of: multilingual_r64 -> multilingual
    case $1 in
    zero_shot) echo zero_shot ;;
    espnet_whisper | espnet_whisper_*) echo espnet_whisper ;;
    *) echo "${1%%_*}" ;;
    esac
}

scenarios() { # in which system $1 is decoded: the language is given (aware) or identified (agnostic)
    case $(base_system "$1") in
    espnet) echo agnostic ;;
    *) echo aware agnostic ;;
    esac
}

experiment() { # folder of system $1; $2: what --asr_exp or --asr_tag names it
    case $1 in
    zero_shot) echo "${expdir}/lole_zero_shot_$(basename "${backbone}")" ;;
    *) echo "${2:-${expdir}/lole_${config_name}_$1_raw_${corpus_name}_seed${seed}}" ;;
    esac
}

in_folder() { # $1 the data sets $2, $3 ...
    [ $# -eq 1 ] || printf "$1/%s " "${@:2}"
}

languages() { # of the data set in folder $1
    require "$1/utt2lang" "run the stages before this one, or give --langs and --test_sets"
    cut -d' ' -f2 "$1/utt2lang" | sort -u | tr '\n' ' '
}

find_test_sets() { # in folder $1, for the languages of its training set $2, unless --test_sets names them
    local all lang
    if [ -z "${test_sets}" ]; then
        all=${langs:-$(languages "$1/$2")}
        for lang in ${all}; do
            [ ! -d "$1/test_${lang}" ] || test_sets+="test_${lang} "
        done
        [ -n "${test_sets}" ] || fail "no test set of ${all} in $1: run the stages before this one, or give --test_sets"
    fi
    decoded_sets="${test_sets}"
    ! "${eval_valid_set}" || decoded_sets+=" ${valid_set}"
}

train() { # system $1
    local base exp known options=()
    base=$(base_system "$1")
    exp=$(experiment "$1" "${asr_exp}")
    known=$(languages "${raw}/${train_set}")
    options=(--system "${base}" --config "${asr_config}" "${asr_config%.yaml}_${base}.yaml")
    [ "$1" = "${base}" ] || options+=("${asr_config%.yaml}_$1.yaml")
    [ "${base}" != mole ] && [ "${base}" != student ] || options+=(--experts "$(experiment experts "")/adapters")
    log "$1 of ${known% }: ${exp}, log in ${exp}/train.log"
    # shellcheck disable=SC2086  # lists and options
    launch "${exp}" espnet_lole.bin.lole_train "${options[@]}" --backbone "${backbone}" --langs ${known} \
        --train_data_path_and_name_and_type "${raw}/${train_set}/utt2lang,lang,text" \
        --valid_data_path_and_name_and_type "${raw}/${valid_set}/utt2lang,lang,text" ${asr_args}
}

decode() { # the test sets with system $1, in jobs that share their batches
    local exp out cmd=${decode_cmd} inference_ngpu=0 model logs
    exp=$(experiment "$1" "${asr_exp}")
    out=${exp}/${inference_tag} model="--model ${exp}"
    logs=${out}_logdir/lole_inference
    [ "$1" != zero_shot ] || model="--backbone ${backbone} --langs ${langs:-$(languages "${raw}/${train_set}")}"
    [ "${gpu_inference}" = false ] || { cmd=${cuda_cmd} && inference_ngpu=1; }
    log "$1: ${out}_<scenario>/<test set>, log in ${logs}.*.log"
    make_folder "${exp}"
    make_folder "${out}_logdir"
    # shellcheck disable=SC2046,SC2086  # lists and options
    ${cmd} --gpu "${inference_ngpu}" JOB=1:"${inference_nj}" "${logs}.JOB.log" \
        "${python}" -m espnet_lole.bin.lole_inference ${model} --ngpu "${inference_ngpu}" \
        --scenarios $(scenarios "$1") --test_dirs $(in_folder "${raw}" ${decoded_sets}) --output_dir "${out}" \
        --config "${inference_config}" ${inference_args} --share JOB/"${inference_nj}" ||
        fail_job decoding "$?" "${out}_logdir/q/lole_inference.log" $(seq -f "${logs}.%g.log" "${inference_nj}")
    # shellcheck disable=SC2046  # a list
    [ "${inference_nj}" -eq 1 ] || "${python}" -m espnet_lole.bin.lole_join --output_dir "${out}" \
        --jobs "${inference_nj}" --scenarios $(scenarios "$1")
}

. lole_utils/check_options.sh

raw=${dumpdir}/raw
perturbed=${speed_perturb_factors:+_sp}
config_name=$(basename "${asr_config}" .yaml)
corpus_name=$(basename "${corpus%.*}")${perturbed}
inference_tag=${inference_tag:-$(basename "${inference_config}" .yaml)$(tr -d ' =/' <<<"${inference_args//--/_}")}
training_sets="${train_set}${perturbed} ${valid_set}"
if "${skip_train}"; then
    training_sets=
    ! "${eval_valid_set}" || training_sets=${valid_set}
fi

if run_stage 1 "Data preparation: ${corpus} to data/"; then
    # shellcheck disable=SC2086  # options
    local/data.sh --corpus "${corpus}" --backbone "${backbone}" --langs "${langs}" --nj "${nj}" --python "${python}" \
        ${local_data_opts}
fi

if run_stage 2 "Speed perturbation: ${speed_perturb_factors:-none}"; then
    if [ -n "${speed_perturb_factors}" ]; then
        "${python}" -m espnet_lole.bin.lole_data perturb --src "data/${train_set}" --dst "data/${train_set}_sp" \
            --factors "${speed_perturb_factors}"
    fi
fi
train_set+=${perturbed}

if run_stage 3 "Format the audio: data/ to 16 kHz mono ${audio_format} in ${raw}"; then
    find_test_sets data "${train_set}"
    # shellcheck disable=SC2046,SC2086  # lists
    "${python}" -m espnet_lole.bin.lole_data format --audio_format "${audio_format}" --nj "${nj}" \
        --src $(in_folder data ${training_sets} ${test_sets}) \
        --dst $(in_folder "${raw}/org" ${training_sets}) $(in_folder "${raw}" ${test_sets})
fi

if [ -n "${training_sets}" ] &&
    run_stage 4 "Remove training audio outside ${min_wav_duration}-${max_wav_duration} s: ${raw}/org to ${raw}"; then
    # shellcheck disable=SC2046,SC2086  # lists
    "${python}" -m espnet_lole.bin.lole_data filter --langs "${langs}" \
        --src $(in_folder "${raw}/org" ${training_sets}) --dst $(in_folder "${raw}" ${training_sets}) \
        --min_wav_duration "${min_wav_duration}" --max_wav_duration "${max_wav_duration}"
fi

run_stage 5 "Token list: none to make, the vocabulary is Whisper's own" || true

run_stage 10 "Statistics: none to collect, stage 3 wrote the lengths of the utterances" || true

if run_stage 11 "Training: ${trained[*]}"; then
    for name in "${train_set}" "${valid_set}"; do
        require "${raw}/${name}/utt2num_samples" "run stages 1 to 4"
    done
    for system in "${trained[@]}"; do
        train "${system}"
    done
fi

if run_stage 12 "Decoding: ${systems} with ${inference_config}"; then
    find_test_sets "${raw}" "${train_set}"
    for system in ${systems}; do
        start decode "${system}"
        wait "$!"
    done
fi

if run_stage 13 "Scoring, texts normalised by ${normalize}: tables in ${expdir} and in each experiment"; then
    find_test_sets "${raw}" "${train_set}"
    decoded=()
    for system in ${systems}; do
        for scenario in $(scenarios "${system}"); do
            out=$(experiment "${system}" "${asr_exp}")/${inference_tag}_${scenario}
            decoded+=(--decoded "${system}:${scenario}:${out}")
        done
    done
    "${python}" -m espnet_lole.bin.lole_score --expdir "${expdir}" --dumpdir "${raw}" --test_sets "${decoded_sets}" \
        --valid_set "${valid_set}" --normalize "${normalize}" --seed "${seed}" --command "${command}" "${decoded[@]}"
fi

if run_stage 14 "Packing: ${trained[*]}"; then
    for system in "${trained[@]}"; do
        exp=$(experiment "${system}" "${asr_exp}")
        "${python}" -m espnet_lole.cli.main export "${exp}" "${exp}/$(basename "${exp}").zip"
    done
fi

if run_stage 15 "Upload: ${trained[*]} to ${hf_repo}"; then
    "${python}" -m espnet_lole.cli.main export "$(experiment "${trained[0]}" "${asr_exp}")" "${expdir}/hf/${hf_repo}"
    "${python}" -m espnet_lole.cli.main upload "${expdir}/hf/${hf_repo}" "${hf_repo}"
fi
