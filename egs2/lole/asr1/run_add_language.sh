#!/usr/bin/env bash
# Add a language to trained experts and MoLE: train its expert alone, then MoLE on all languages.
# Usage: ./run_add_language.sh --lang pt --corpus FILE --experts FOLDER --mole FOLDER [options]
set -euo pipefail

stage=1              # first stage to run, as in lole.sh: 1-4 prepare the data, 11 trains, 12 decodes, 13 scores
stop_stage=13        # last stage to run
lang=                # language to add
corpus=              # YAML file of the earlier languages and the new one, because MoLE is trained on all
experts=             # experiment of the experts; the new adapter is added to it, the others stay as they are
mole=                # experiment of MoLE; the new MoLE is written to <this>_<language>
init_expert=auto     # expert to start from: auto (of the language that sounds most alike), none, or a language
asr_args=            # more training options, e.g. "--max_epoch 10"
run_args=            # more options for run.sh, e.g. "--backbone openai/whisper-medium --asr_config conf/train.yaml"

# As in lole.sh
inference_config=conf/mini/decode.yaml # configuration of the decoding
dumpdir=dump         # folder of the formatted data
python=python3       # Python interpreter
seed=0               # random seed of the training

command="./$(basename "$0")$(printf ' %q' "$@")"
# shellcheck disable=SC1091
. lole_utils/parse_options.sh
# shellcheck disable=SC1091
. ./path.sh
. lole_utils/jobs.sh

[ -n "${lang}" ] && [ -n "${corpus}" ] && [ -n "${experts}" ] && [ -n "${mole}" ] ||
    fail "--lang, --corpus, --experts and --mole are required: see $0 --help"
experts=${experts%/} mole=${mole%/}
expdir=$(dirname "${experts}")
[ "$(dirname "${mole}")" = "${expdir}" ] || fail "--experts and --mole are in different folders: move them to one"
require "${experts}/config.yaml" "--experts is not the experiment of trained experts"
require "${mole}/config.yaml" "--mole is not the experiment of a trained MoLE"

recipe() { # run.sh with these options
    # shellcheck disable=SC2086  # options
    start ./run.sh --corpus "${corpus}" --inference_config "${inference_config}" --dumpdir "${dumpdir}" \
        --expdir "${expdir}" --python "${python}" --seed "${seed}" ${run_args} "$@"
    wait "$!"
}

run_stage() { # is stage $1 to be run?
    [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ]
}

raw=${dumpdir}/raw
new_expert=${experts}_${lang} new_mole=${mole}_${lang}
tag_of_experts=${experts##*/lole_} tag_of_mole=${mole##*/lole_}
out=$(basename "${inference_config}" .yaml)

if run_stage 4; then
    recipe --stage "${stage}" --stop_stage 4
    "${python}" -m espnet_lole.bin.lole_data filter --langs "${lang}" --src "${raw}/train" "${raw}/dev" \
        --dst "${raw}/train_${lang}" "${raw}/dev_${lang}"
fi

if run_stage 11; then
    if [ "${init_expert}" = auto ]; then
        similar=${new_expert}_similar.txt
        "${python}" -m espnet_lole.bin.lole_similar --model "${mole}" --data "${raw}/dev_${lang}" --output "${similar}"
        init_expert=$(head -n 1 "${similar}" | cut -d' ' -f1)
        log "The expert of ${lang} starts from that of ${init_expert}, which sounds most alike: ${similar}"
    fi
    [ "${init_expert}" = none ] || init_args="--init_expert ${experts}/adapters/${init_expert}"
    recipe --stage 11 --stop_stage 11 --systems experts --train_set "train_${lang}" --valid_set "dev_${lang}" \
        --asr_tag "${tag_of_experts}_${lang}" --asr_args "${init_args:-} ${asr_args}"
    "${python}" -m espnet_lole.cli.main add-expert "${new_expert}/adapters/${lang}" --lang "${lang}" \
        --model "${experts}" --replace
    recipe --stage 11 --stop_stage 11 --systems mole --asr_tag "${tag_of_mole}_${lang}" \
        --asr_args "--experts ${experts}/adapters --init_mole ${mole} ${asr_args}"
fi

if run_stage 12; then
    recipe --stage 12 --stop_stage 12 --systems experts --asr_tag "${tag_of_experts}"
    recipe --stage 12 --stop_stage 12 --systems mole --asr_tag "${tag_of_mole}_${lang}"
fi

if run_stage 13; then
    "${python}" -m espnet_lole.bin.lole_score --expdir "${expdir}" --dumpdir "${raw}" --seed "${seed}" \
        --command "${command}" \
        --test_sets "$(cut -d' ' -f2 "${raw}/train/utt2lang" | sort -u | sed 's/^/test_/' | xargs)" \
        --decoded "experts:aware:${experts}/${out}_aware" --decoded "mole:aware:${new_mole}/${out}_aware" \
        --decoded "mole:agnostic:${new_mole}/${out}_agnostic"
fi
