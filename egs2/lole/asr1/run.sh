#!/usr/bin/env bash
# Language experts, MoLE and a student on the embedded corpus and backbone. For other data and models see README.md.
set -euo pipefail

exec ./lole.sh \
    --corpus conf/corpora/lole_mini.yaml \
    --backbone models/whisper-nano \
    --asr_config conf/mini/train.yaml \
    --inference_config conf/mini/decode.yaml \
    "$@"
