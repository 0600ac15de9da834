#!/usr/bin/env bash
# The main job: language experts on the embedded corpus and backbone. Other data and models: see README.md.
set -euo pipefail

exec ./lole.sh \
    --corpus conf/corpora/lole_mini.yaml \
    --backbone ../../../models/whisper-nano \
    --asr_config conf/mini/train_experts.yaml \
    --mole_config conf/mini/train_mole.yaml \
    --student_config conf/mini/train_student.yaml \
    --multilingual_config conf/mini/train_multilingual.yaml \
    --full_config conf/mini/train_full.yaml \
    --espnet_config conf/mini/train_espnet.yaml \
    --inference_config conf/mini/decode.yaml \
    --espnet_inference_config conf/decode_espnet.yaml \
    "$@"
