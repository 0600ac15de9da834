#!/usr/bin/env bash
# Language experts from data to a table of error rates; stages 1-5 and 10-13 mean what they mean in ESPnet's asr.sh.
# shellcheck disable=SC2034  # the options of a system are read by their names
set -euo pipefail

stage=1              # first stage to run
stop_stage=13        # last stage to run
skip_stages=         # stages to leave out, e.g. "2 3"
corpus=              # YAML: language -> Kaldi directories, or recipes of ESPnet
langs=               # only these languages, e.g. "de en"; empty: all of the corpus
backbone=            # hub name, folder of a transformers Whisper, or .pt file of OpenAI's
systems="zero_shot experts mole student" # what to train and decode; besides: multilingual full espnet. A variant of one,
                     # multilingual_r64, has its configuration in <configuration of multilingual>_r64.yaml
ngpu=0               # GPUs a node
num_nodes=1          # nodes
nproc=1              # processes of a training without GPUs, on this machine; they share its threads
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
multilingual_config= # training configuration of the multilingual LoRA
multilingual_args=   # more training options for it
multilingual_tag=    # name of its experiment; empty: from the configuration
full_config=         # training configuration of full fine-tuning
full_args=           # more training options for it
full_tag=            # name of its experiment; empty: from the configuration
espnet_config=       # training configuration of ESPnet's own model
espnet_args=         # more training options for it
espnet_tag=          # name of its experiment; empty: from the configuration
inference_config=    # decoding configuration
espnet_inference_config= # that of ESPnet's own model
inference_asr_model=valid.acc.ave.pth   # checkpoint to decode
inference_mole_model=valid.loss.ave.pth # that of MoLE
seed=0               # of training

log() { echo "$(date '+%H:%M:%S') $*"; }
fail() {
    echo "error: $*" >&2
    exit 1
}

command="$0 ${*@Q}" # for RESULTS.md
trap 'echo "error: line ${LINENO} of $0 failed: ${BASH_COMMAND}" >&2' ERR
trainer= # process group of the training that runs
trap '[ -z "${trainer}" ] || ! kill -- "-${trainer}" 2>/dev/null || log "the training was ended: the same command goes on from its last epoch"' EXIT
# shellcheck disable=SC1091
. utils/parse_options.sh
# shellcheck disable=SC1091
. ./path.sh
# shellcheck disable=SC1091
. ./cmd.sh
export python

[[ ${nproc} =~ ^[1-9][0-9]*$ ]] || fail "expected a number of processes, got --nproc ${nproc}"
[ "${nproc}" -eq 1 ] || [ "${ngpu} ${num_nodes}" = "0 1" ] ||
    fail "expected --nproc 1 with GPUs or several nodes, where ESPnet starts the processes by --ngpu and --num_nodes, got ${nproc}"
for required in corpus backbone asr_config mole_config student_config inference_config; do
    [ -n "${!required}" ] || fail "expected --${required}, got none: start from run.sh"
done

corpus_tag=raw_$(basename "${corpus}" .yaml)${speed_perturb_factors:+_sp}_seed${seed}
train_data=data/train${speed_perturb_factors:+_sp}
inference_tag=$(basename "${inference_config}" .yaml)
stats_dir=${expdir}/lole_stats_raw
raw=${dumpdir}/raw
token_list=${dumpdir}/token_list/char/tokens.txt # of ESPnet's own model
subsets=("")                                     # endings of the names of the sets that systems are trained on
kinds="zero_shot experts mole student multilingual full espnet"
declare -A scenarios=([zero_shot]="aware agnostic" [experts]=aware [mole]="aware agnostic" [student]="aware agnostic"
    [multilingual]="aware agnostic" [full]="aware agnostic" [espnet]=agnostic)
declare -A kind_of=() config_of=() args_of=() experiment=()
describe() { # system $1 of kind $2: its configuration, options and experiment
    local prefix=${2/experts/asr} variant=${1#"$2"} config args tag
    kind_of[$1]=$2 experiment[$1]=${expdir}/lole_zero_shot_$(basename "${backbone}")
    [ "$2" != zero_shot ] || return 0
    config=${prefix}_config args=${prefix}_args tag=${prefix}_tag
    config=${!config%.yaml} tag=${!tag}
    [ -n "${config}" ] || fail "expected --${prefix}_config for system $1, got none: start from run.sh"
    config_of[$1]=${config}${variant}.yaml args_of[$1]=${!args}
    experiment[$1]=${expdir}/lole_${tag:-$(basename "${config}")}${variant}
    [ -n "${tag}" ] || experiment[$1]+=_${corpus_tag}
    [ -n "${add_lang}" ] && [ "$2" != experts ] || return 0
    [ "$2" != mole ] || args_of[$1]="--mole_start ${experiment[$1]}/${inference_mole_model} ${!args}"
    experiment[$1]+=_${add_lang}
}
for kind in experts mole; do describe "${kind}" "${kind}"; done # others are built on them
ordered=()
for kind in ${kinds}; do
    for system in ${systems}; do
        [[ ${system} != "${kind}" && ${system} != "${kind}"_* ]] || { describe "${system}" "${kind}" && ordered+=("${system}"); }
    done
done
[ "${#ordered[@]}" -eq "$(wc -w <<<"${systems}")" ] || fail "expected systems of: ${kinds}, and variants of them, got '${systems}'"
experts_exp=${experiment[experts]}
[ -z "${add_lang}" ] || subsets+=("_${add_lang}")
because() { # the last error in the logs that is no other process's, and where they are
    cat "$@" 2>/dev/null | grep -aE '^error: |Error: .|Signal [0-9]+ .SIG(KILL|ABRT|SEGV|BUS)' | grep -av 'gloo/transport' | tail -n 1 | sed 's/^error: //' || true
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
writable() { # make folder $1, or stop where nothing can be written to it
    local probe
    if ! { mkdir -p "$1" && probe=$(mktemp -p "$1") && rm "${probe}"; } 2>/dev/null; then
        fail "expected a folder to write to, got $1, where no file can be made: check its permissions and disk; nothing was changed"
    fi
}
logged() { # run module $2 with the options after it, output to log $1
    writable "$(dirname "$1")"
    ${python} -m "${@:2}" >"$1" 2>&1 || fail "$2 failed: $(because "$1")"
}
launch() { # training job $1 in experiment $2 on the sets train$3 and dev$3: config $4, module $5, the options after them
    local src pair now shown='' torchrun=() data_options=()
    [ "${nproc}" -eq 1 ] || { torchrun=(-m torch.distributed.run --standalone --nproc_per_node "${nproc}") && data_options=(--dist_backend gloo); }
    for pair in train:train dev:valid; do
        src=${raw}/${pair%%:*}$3
        data_options+=(--"${pair##*:}"_data_path_and_name_and_type "${src}/wav.scp,speech,sound")
        data_options+=(--"${pair##*:}"_data_path_and_name_and_type "${src}/text,text,text")
        data_options+=(--"${pair##*:}"_shape_file "${stats_dir}$3/${pair##*:}/speech_shape")
    done
    log "$1: $2, log in $2/train.log"
    writable "$2"
    set -m # a process group of its own, so that none of it outlives the recipe
    OMP_NUM_THREADS=$(((OMP_NUM_THREADS + nproc - 1) / nproc)) \
        ${python} -m espnet2.bin.launch --cmd "${cuda_cmd}" --log "$2/train.log" --ngpu "${ngpu}" \
        --num_nodes "${num_nodes}" --init_file_prefix "$2/.dist_init_" --multiprocessing_distributed true -- \
        ${python} "${torchrun[@]}" -m "$5" --config "$4" --resume true --seed "${seed}" --output_dir "$2" "${data_options[@]}" "${@:6}" \
        2>"$2/launch.log" &
    trainer=$!
    set +m
    while kill -0 "${trainer}" 2>/dev/null; do
        sleep 2
        now=$(grep -ahoE '[0-9]+/[0-9]+epoch started.*' "$2/train.log" 2>/dev/null | tail -n 1 || true)
        [ "${now}" = "${shown}" ] || log "  ${now}"
        shown=${now}
    done
    wait "${trainer}" || fail "training failed: $(because "$2/launch.log" "$2/train.log")"
    trainer=
}
train() { # system $1 in experiment $2 on the sets train$3 and dev$3, more options after them
    local langs_found
    langs_found=$(languages "$3")
    # shellcheck disable=SC2086  # lists and options
    launch "$1 of ${langs_found}" "$2" "$3" "${config_of[$1]}" espnet_lole.bin.lole_train --system "${kind_of[$1]/multilingual/student}" \
        --train_data_path_and_name_and_type "${raw}/train$3/utt2lang,lang,text" \
        --valid_data_path_and_name_and_type "${raw}/dev$3/utt2lang,lang,text" \
        --backbone "${backbone}" --langs ${langs_found} "${@:4}" ${args_of[$1]}
}
draw() { # in folder $1 with the options after it
    logged "$1/$2.log" plot "${@:2}"
    log "pictures in $1"
}
export_from() { # the checkpoint in experiment $1, the options after it
    logged "$1/export.log" espnet_lole.bin.lole_export --asr_model_file "$1/${inference_asr_model}" "${@:2}"
}
start_of_expert() { # options for the start of an added language's expert
    local start=${expert_start} similar=${experiment[mole]}_similar old_mole
    [ -n "${add_lang}" ] && [ "${start}" != none ] || return 0
    if [ "${start}" = auto ]; then
        old_mole=${experiment[mole]%"_${add_lang}"}/${inference_mole_model}
        [ -s "${old_mole}" ] || fail "expected ${old_mole}, found none: train MoLE without ${add_lang} first, or give --expert_start"
        logged "${similar}.log" espnet_lole.bin.lole_similar --mole "${old_mole}" --data "${raw}/dev_${add_lang}" --output "${similar}.txt"
        start=$(head -n 1 "${similar}.txt" | cut -d' ' -f1)
        log "${add_lang} sounds most like ${start}, see ${similar}.txt: its expert starts from that" >&2
    fi
    echo "--expert_start ${experts_exp}/adapters/${start}"
}
decode() { # the test sets with system $1 by module $2, the options after it
    local out=${experiment[$1]}/${inference_tag} inference_ngpu=0
    [ "${gpu_inference}" = true ] && inference_ngpu=1
    log "$1: ${#sets[@]} test sets, language ${scenarios[${kind_of[$1]}]}: ${out}_*, log in ${out}.log"
    writable "${experiment[$1]}"
    ${decode_cmd} --gpu "${inference_ngpu}" "${out}.log" "${python}" -m "$2" --ngpu "${inference_ngpu}" \
        --test_dirs "${sets[@]/#/${raw}/}" "${@:3}" || fail "decoding failed: $(because "${out}.log")"
}
decode_whisper() { # with system $1, its options after it
    # shellcheck disable=SC2086  # scenarios
    decode "$1" espnet_lole.bin.lole_inference --config "${inference_config}" --scenarios ${scenarios[${kind_of[$1]}]} \
        --output_dir "${experiment[$1]}/${inference_tag}" "${@:2}"
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

if runs 5 "token list: Whisper's own vocabulary; for ESPnet's own model, the characters of the training text"; then
    if [[ " ${kind_of[*]} " == *" espnet "* ]]; then
        logged "${token_list%.txt}.log" espnet2.bin.tokenize_text --token_type char --field 2- --input "${raw}/train/text" --output "${token_list}" \
            --write_vocabulary true --add_symbol "<blank>:0" --add_symbol "<unk>:1" --add_symbol "<sos/eos>:-1"
    fi
fi

if runs 10 "lengths of the utterances to ${stats_dir}"; then
    for subset in "${subsets[@]}"; do
        for pair in train:train dev:valid; do
            src=${raw}/${pair%%:*}${subset} dst=${stats_dir}${subset}/${pair##*:}
            [ -s "${src}/utt2num_samples" ] || fail "expected ${src}/utt2num_samples, found none: run stages 1 to 4"
            writable "${dst}"
            cp "${src}/utt2num_samples" "${dst}/.speech_shape"
            mv "${dst}/.speech_shape" "${dst}/speech_shape"
        done
    done
fi

if runs 11 "train"; then
    for subset in "${subsets[@]}"; do
        for name in train valid; do
            [ -s "${stats_dir}${subset}/${name}/speech_shape" ] || fail "expected ${stats_dir}${subset}/${name}/speech_shape: run stage 10"
        done
    done
    if [[ " ${kind_of[*]} " == *" espnet "* ]]; then
        [ -s "${token_list}" ] || fail "expected ${token_list}, found none: run stage 5 with --systems espnet"
    fi
    for system in "${ordered[@]}"; do
        exp=${experiment[${system}]}
        case "${kind_of[${system}]}" in
        experts)
            start_options=$(start_of_expert)
            # shellcheck disable=SC2086  # options
            train "${system}" "${exp}${add_lang:+_${add_lang}}" "${add_lang:+_${add_lang}}" ${start_options}
            export_from "${exp}${add_lang:+_${add_lang}}" --output_dir "${exp}/adapters"
            log "adapters in the format of peft: ${exp}/adapters/<language>"
            ;;
        mole) train "${system}" "${exp}" "" --experts "${experts_exp}/adapters" ;;
        student | multilingual)
            train "${system}" "${exp}" "" --experts "${experts_exp}/adapters"
            export_from "${exp}" --output_dir "${exp}/adapters" --merged "${exp}/merged"
            log "${system} in the format of peft: ${exp}/adapters/student; merged into a transformers Whisper: ${exp}/merged"
            ;;
        full)
            train "${system}" "${exp}" ""
            export_from "${exp}" --merged "${exp}/merged"
            log "fine-tuned transformers Whisper: ${exp}/merged"
            ;;
        espnet)
            # shellcheck disable=SC2086  # options
            launch "${system}" "${exp}" "" "${config_of[${system}]}" espnet2.bin.asr_train --token_list "${token_list}" ${args_of[${system}]}
            ;;
        esac
    done
fi

if runs 12 "decode with ${inference_config}"; then
    listed=$(test_sets)
    mapfile -t sets <<<"${listed}"
    listed=$(languages "")
    read -ra known <<<"${listed}"
    for system in "${ordered[@]}"; do
        exp=${experiment[${system}]}
        case "${kind_of[${system}]}" in
        zero_shot) decode_whisper "${system}" --backbone "${backbone}" --langs "${known[@]}" ;;
        experts) decode_whisper "${system}" --experts "${exp}/adapters" --asr_train_config "${exp}/config.yaml" ;;
        mole) decode_whisper "${system}" --asr_model_file "${exp}/${inference_mole_model}" ;;
        student | multilingual) decode_whisper "${system}" --student "${exp}/adapters/student" --asr_train_config "${exp}/config.yaml" ;;
        full) decode_whisper "${system}" --backbone "${exp}/merged" --asr_train_config "${exp}/config.yaml" ;;
        espnet)
            [ -n "${espnet_inference_config}" ] || fail "expected --espnet_inference_config, got none: start from run.sh"
            decode "${system}" espnet_lole.bin.lole_espnet --config "${espnet_inference_config}" \
                --asr_model_file "${exp}/${inference_asr_model}" --output_dir "${exp}/${inference_tag}_agnostic"
            ;;
        esac
    done
fi

if runs 13 "score"; then
    decoded=() adapters=()
    for system in "${ordered[@]}"; do
        exp=${experiment[${system}]}
        for scenario in ${scenarios[${kind_of[${system}]}]}; do
            decoded+=(--decoded "${system}:${scenario}:${exp}/${inference_tag}_${scenario}")
        done
        case "${kind_of[${system}]}" in
        mole) draw "${exp}/images" mole --mole "${exp}/${inference_mole_model}" --decoded "${exp}/${inference_tag}_agnostic" \
            --dumpdir "${raw}" --test_sets "$(test_sets | tr '\n' ' ')" --output_dir "${exp}/images" ;;
        student) draw "${exp}/images" energy --config "${experts_exp}/config.yaml" --experts "${experts_exp}/adapters" \
            --student "${exp}/adapters/student" --output "${exp}/images/energy.png" ;;
        esac
        [[ ${kind_of[${system}]} != student && ${kind_of[${system}]} != multilingual ]] || adapters+=("${system}=${exp}/adapters/student")
    done
    if [[ " ${kind_of[*]} " == *" multilingual "* && " ${kind_of[*]} " == *" student "* ]]; then
        listed=$(test_sets)
        mapfile -t sets <<<"${listed}"
        options=(--config "${experts_exp}/config.yaml" --adapters "${adapters[@]}")
        draw "${expdir}/images" cosines "${options[@]}" --experts "${experts_exp}/adapters" --data "${raw}/dev" --output "${expdir}/images/cosines.png"
        draw "${expdir}/images" states "${options[@]}" --data "${sets[@]/#/${raw}/}" --output "${expdir}/images/states.png"
    fi
    ${python} -m espnet_lole.bin.lole_score --expdir "${expdir}" --dumpdir "${raw}" --test_sets "$(test_sets | tr '\n' ' ')" \
        --seed "${seed}" --command "${command}" "${decoded[@]}"
    log "results: ${expdir}/RESULTS.md and ${expdir}/results.csv"
fi
