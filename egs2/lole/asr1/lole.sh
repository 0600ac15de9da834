#!/usr/bin/env bash
# Language experts from data to a table of error rates; stages 1-5 and 10-13 mean what they mean in ESPnet's asr.sh.
set -euo pipefail

stage=1              # first stage to run
stop_stage=13        # last stage to run
skip_stages=         # stages to leave out, e.g. "2 3"
corpus=              # YAML: language -> Kaldi directories, or recipes of ESPnet
langs=               # only these languages, e.g. "de en"; empty: all of the corpus
backbone=            # hub name, folder of a transformers Whisper, or .pt file of OpenAI's
systems="zero_shot experts mole student" # what to train and decode
ngpu=0               # GPUs a node
num_nodes=1          # nodes
nj=4                 # threads and processes of the data preparation
gpu_inference=false  # decode on a GPU
dumpdir=dump         # formatted data
expdir=exp           # experiments
python=python3       # the interpreter
local_data_opts=     # options for local/data.sh
speed_perturb_factors= # e.g. "0.9 1.0 1.1"; empty: none
audio_format=flac    # flac or wav
min_wav_duration=0.1 # seconds; shorter training audio is dropped
max_wav_duration=30  # seconds; longer training audio is dropped
asr_config=          # training configuration of the experts
asr_args=            # more training options for them, e.g. "--max_epoch 3"
asr_tag=             # name of their experiment; empty: from the configuration
mole_config=         # training configuration of MoLE
mole_args=           # more training options for it
mole_tag=            # name of its experiment; empty: from the configuration
add_lang=            # a new language beside trained systems: its expert alone is trained, and MoLE extended by it
expert_start=auto    # adapter its expert starts from: auto (the language it sounds most like), none, or a language
student_config=      # training configuration of the student
student_args=        # more training options for it, e.g. "--distill_conf kd=layers"
student_tag=         # name of its experiment; empty: from the configuration
inference_config=    # decoding configuration
inference_asr_model=valid.acc.ave.pth   # checkpoint of the experts to decode, and to build MoLE on
inference_mole_model=valid.loss.ave.pth # checkpoint of MoLE to decode
inference_student_model=valid.acc.ave.pth # checkpoint of the student to decode
seed=0               # of training

log() { echo "$(date '+%H:%M:%S') $*"; }
fail() {
    echo "error: $*" >&2
    exit 1
}

trap 'echo "error: line ${LINENO} of $0 failed: ${BASH_COMMAND}" >&2' ERR
# shellcheck disable=SC1091
. utils/parse_options.sh
# shellcheck disable=SC1091
. ./path.sh
# shellcheck disable=SC1091
. ./cmd.sh
export python

for required in corpus backbone asr_config mole_config student_config inference_config; do
    [ -n "${!required}" ] || fail "expected --${required}, got none: start from run.sh"
done
for system in ${systems}; do
    case "${system}" in
    zero_shot | experts | mole | student) ;;
    *) fail "expected systems of: zero_shot experts mole student, got '${system}'" ;;
    esac
done

corpus_tag=raw_$(basename "${corpus}" .yaml)${speed_perturb_factors:+_sp}_seed${seed}
train_data=data/train${speed_perturb_factors:+_sp}
inference_tag=$(basename "${inference_config}" .yaml)
stats_dir=${expdir}/lole_stats_raw
zero_shot_exp=${expdir}/lole_zero_shot_$(basename "${backbone}")
experts_exp=${expdir}/lole_${asr_tag:-$(basename "${asr_config}" .yaml)_${corpus_tag}}
mole_exp=${expdir}/lole_${mole_tag:-$(basename "${mole_config}" .yaml)_${corpus_tag}}
student_exp=${expdir}/lole_${student_tag:-$(basename "${student_config}" .yaml)_${corpus_tag}}
raw=${dumpdir}/raw
subsets=("") # endings of the names of the sets that systems are trained on
if [ -n "${add_lang}" ]; then
    subsets+=("_${add_lang}")
    old_mole=${mole_exp}/${inference_mole_model}
    mole_args="--mole_start ${old_mole} ${mole_args}"
    mole_exp=${mole_exp}_${add_lang} student_exp=${student_exp}_${add_lang}
fi
declare -A experiment=([zero_shot]=${zero_shot_exp} [experts]=${experts_exp} [mole]=${mole_exp} [student]=${student_exp})
declare -A scenarios=([zero_shot]="aware agnostic" [experts]="aware" [mole]="aware agnostic" [student]="aware agnostic")
because() { # the last error in the logs, and where they are
    cat "$@" 2>/dev/null | grep -aE '^error: |Error: ' | tail -n 1 || true
    echo "log: $*"
}
runs() { # is stage $1 to be run? Says so.
    [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ] && [[ " ${skip_stages} " != *" $1 "* ]] || return 1
    log "Stage $1: $2"
}
test_sets() { # names of the formatted test sets of the languages to train, or of those in --langs
    local wanted=${langs:-$(languages "")} found=() lang
    for lang in ${wanted}; do
        if [ -s "${raw}/test_${lang}/wav.scp" ]; then found+=("test_${lang}"); fi
    done
    [ "${#found[@]}" -gt 0 ] || fail "expected formatted test sets of ${wanted} in ${raw}, found none: run stage 3"
    printf '%s\n' "${found[@]}"
}
has() { # is system $1 wanted?
    [[ " ${systems} " == *" $1 "* ]]
}
logged() { # run module $2 with the options after it, output to log $1
    ${python} -m "${@:2}" >"$1" 2>&1 || fail "$2 failed: $(because "$1")"
}
train() { # system $1 with config $2 in experiment $3 on the sets train$4 and dev$4, more options after them
    local src pair now shown='' data_options=() langs_found
    langs_found=$(languages "$4")
    for pair in train:train dev:valid; do
        src=${raw}/${pair%%:*}$4
        data_options+=(--"${pair##*:}"_data_path_and_name_and_type "${src}/wav.scp,speech,sound")
        data_options+=(--"${pair##*:}"_data_path_and_name_and_type "${src}/text,text,text")
        data_options+=(--"${pair##*:}"_data_path_and_name_and_type "${src}/utt2lang,lang,text")
        data_options+=(--"${pair##*:}"_shape_file "${stats_dir}$4/${pair##*:}/speech_shape")
    done
    log "$1 of ${langs_found}: $3, log in $3/train.log"
    mkdir -p "$3"
    # shellcheck disable=SC2086  # lists and options
    ${python} -m espnet2.bin.launch --cmd "${cuda_cmd}" --log "$3/train.log" --ngpu "${ngpu}" \
        --num_nodes "${num_nodes}" --init_file_prefix "$3/.dist_init_" --multiprocessing_distributed true -- \
        ${python} -m espnet_lole.bin.lole_train --config "$2" --system "$1" --backbone "${backbone}" --langs ${langs_found} \
        --resume true --seed "${seed}" --output_dir "$3" "${data_options[@]}" "${@:5}" 2>"$3/launch.log" &
    local trainer=$!
    while kill -0 "${trainer}" 2>/dev/null; do
        sleep 2
        now=$(grep -ahoE '[0-9]+/[0-9]+epoch started.*' "$3/train.log" 2>/dev/null | tail -n 1 || true)
        [ "${now}" = "${shown}" ] || log "  ${now}"
        shown=${now}
    done
    wait "${trainer}" || fail "training failed: $(because "$3/launch.log" "$3/train.log")"
}
start_of_expert() { # options for the start of an added language's expert
    local start=${expert_start}
    [ -n "${add_lang}" ] && [ "${start}" != none ] || return 0
    if [ "${start}" = auto ]; then
        [ -s "${old_mole}" ] || fail "expected ${old_mole}, found none: train MoLE without ${add_lang} first, or give --expert_start"
        logged "${mole_exp}_similar.log" espnet_lole.bin.lole_similar --mole "${old_mole}" --data "${raw}/dev_${add_lang}" \
            --output "${mole_exp}_similar.txt"
        start=$(head -n 1 "${mole_exp}_similar.txt" | cut -d' ' -f1)
        log "${add_lang} sounds most like ${start}, see ${mole_exp}_similar.txt: its expert starts from that" >&2
    fi
    echo "--expert_start ${experts_exp}/adapters/${start}"
}
decode() { # system $1, the model's options after it
    local out=${experiment[$1]}/${inference_tag} inference_ngpu=0
    [ "${gpu_inference}" = true ] && inference_ngpu=1
    log "$1: ${#sets[@]} test sets, language ${scenarios[$1]}: ${out}_*, log in ${out}.log"
    # shellcheck disable=SC2086  # scenarios
    ${decode_cmd} --gpu "${inference_ngpu}" "${out}.log" \
        "${python}" -m espnet_lole.bin.lole_inference --ngpu "${inference_ngpu}" --config "${inference_config}" "${@:2}" \
        --scenarios ${scenarios[$1]} --test_dirs "${sets[@]/#/${raw}/}" --output_dir "${out}" || fail "decoding failed: $(because "${out}.log")"
}
languages() { # languages of the training set train$1
    [ -s "${raw}/train$1/utt2lang" ] || fail "expected ${raw}/train$1/utt2lang, found none: run stages 1 to 4"
    cut -d' ' -f2 "${raw}/train$1/utt2lang" | sort -u | tr '\n' ' '
}

if runs 1 "data of ${corpus} to data/"; then
    # shellcheck disable=SC2086  # options
    local/data.sh --corpus "${corpus}" --langs "${langs}" --nj "${nj}" ${local_data_opts}
fi

if runs 2 "speed perturbation: ${speed_perturb_factors:-none}"; then
    [ -z "${speed_perturb_factors}" ] ||
        ${python} -m espnet_lole.bin.lole_data perturb --src data/train --dst "${train_data}" --factors "${speed_perturb_factors}"
fi

if runs 3 "audio to 16 kHz mono ${audio_format} in ${raw}"; then
    [ -s "${train_data}/utt2lang" ] || fail "expected ${train_data}/utt2lang, found none: run stages 1 and 2"
    from=("${train_data}" data/dev) to=("${raw}"/org/{train,dev})
    while read -r lang; do # other folders there are not of this corpus
        [ ! -d "data/test_${lang}" ] || { from+=("data/test_${lang}") && to+=("${raw}/test_${lang}"); }
    done < <(cut -d' ' -f2 data/train/utt2lang | sort -u)
    ${python} -m espnet_lole.bin.lole_data format --src "${from[@]}" --dst "${to[@]}" --audio_format "${audio_format}" --nj "${nj}"
fi

if runs 4 "drop training audio outside ${min_wav_duration}-${max_wav_duration} s"; then
    bounds=(--min_wav_duration "${min_wav_duration}" --max_wav_duration "${max_wav_duration}")
    ${python} -m espnet_lole.bin.lole_data filter --src "${raw}"/org/{train,dev} --dst "${raw}"/{train,dev} "${bounds[@]}" --langs "${langs}"
    [ -z "${add_lang}" ] || ${python} -m espnet_lole.bin.lole_data filter --src "${raw}"/{train,dev} --dst "${raw}"/{train,dev}"_${add_lang}" \
        "${bounds[@]}" --langs "${add_lang}"
fi

if runs 5 "token list: Whisper's own vocabulary, nothing to make"; then :; fi

if runs 10 "lengths of the utterances to ${stats_dir}"; then
    for subset in "${subsets[@]}"; do
        for pair in train:train dev:valid; do
            src=${raw}/${pair%%:*}${subset} dst=${stats_dir}${subset}/${pair##*:}
            [ -s "${src}/utt2num_samples" ] || fail "expected ${src}/utt2num_samples, found none: run stages 1 to 4"
            mkdir -p "${dst}"
            cp "${src}/utt2num_samples" "${dst}/speech_shape"
        done
    done
fi

if runs 11 "train"; then
    for subset in "${subsets[@]}"; do
        for name in train valid; do
            [ -s "${stats_dir}${subset}/${name}/speech_shape" ] || fail "expected ${stats_dir}${subset}/${name}/speech_shape: run stage 10"
        done
    done
    if has experts; then
        exp=${experts_exp}${add_lang:+_${add_lang}}
        start_options=$(start_of_expert)
        # shellcheck disable=SC2086  # options
        train experts "${asr_config}" "${exp}" "${add_lang:+_${add_lang}}" ${start_options} ${asr_args}
        logged "${exp}/export.log" espnet_lole.bin.lole_export --asr_model_file "${exp}/${inference_asr_model}" \
            --output_dir "${experts_exp}/adapters"
        log "adapters in the format of peft: ${experts_exp}/adapters/<language>"
    fi
    if has mole; then
        # shellcheck disable=SC2086  # options
        train mole "${mole_config}" "${mole_exp}" "" --experts "${experts_exp}/adapters" ${mole_args}
    fi
    if has student; then
        # shellcheck disable=SC2086  # options
        train student "${student_config}" "${student_exp}" "" --experts "${experts_exp}/adapters" ${student_args}
        logged "${student_exp}/export.log" espnet_lole.bin.lole_export --asr_model_file "${student_exp}/${inference_student_model}" \
            --output_dir "${student_exp}/adapters" --merged "${student_exp}/merged"
        log "student in the format of peft: ${student_exp}/adapters/student; merged into a transformers Whisper: ${student_exp}/merged"
    fi
fi

if runs 12 "decode with ${inference_config}"; then
    mapfile -t sets < <(test_sets)
    read -ra known <<<"$(languages "")"
    has zero_shot && decode zero_shot --backbone "${backbone}" --langs "${known[@]}"
    has experts && decode experts --experts "${experts_exp}/adapters" --asr_train_config "${experts_exp}/config.yaml"
    has mole && decode mole --asr_model_file "${mole_exp}/${inference_mole_model}"
    has student && decode student --student "${student_exp}/adapters/student" --asr_train_config "${student_exp}/config.yaml"
fi

if runs 13 "score"; then
    decoded=()
    for system in ${systems}; do
        for scenario in ${scenarios[${system}]}; do
            decoded+=(--decoded "${system}:${scenario}:${experiment[${system}]}/${inference_tag}_${scenario}")
        done
    done
    if has mole; then
        logged "${mole_exp}/plot.log" espnet_lole.bin.lole_plot --mole "${mole_exp}/${inference_mole_model}" --decoded "${mole_exp}/${inference_tag}_agnostic" \
            --dumpdir "${raw}" --test_sets "$(test_sets | tr '\n' ' ')" --output_dir "${mole_exp}/images"
        log "pictures of MoLE: ${mole_exp}/images"
    fi
    ${python} -m espnet_lole.bin.lole_score --expdir "${expdir}" --dumpdir "${raw}" --test_sets "$(test_sets | tr '\n' ' ')" \
        --seed "${seed}" "${decoded[@]}"
    log "results: ${expdir}/RESULTS.md and ${expdir}/results.csv"
fi
