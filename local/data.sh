#!/usr/bin/env bash
# Collect a corpus in data/train, data/dev and data/test_<language>; lole_mini is synthesized first.
# Usage: local/data.sh --corpus FILE [options]
set -euo pipefail

corpus=conf/corpora/lole_mini.yaml # YAML, see conf/corpora/example.yaml, or a manifest
backbone=                          # Whisper to train, whose languages are checked first
langs=                             # languages to use, e.g. "de en"; empty: all languages of the corpus
download=false                     # true: recipes of ESPnet may download their corpora
nj=2                               # number of parallel jobs
python=python3                     # Python interpreter
clones=downloads                   # for conf/corpora/human.yaml: folder of the clones, see docs/own_corpus.md

# shellcheck disable=SC1091
. lole_utils/parse_options.sh

if [ "$(basename "${corpus}")" = lole_mini.yaml ]; then
    "${python}" -c "import babel, espeakng_loader, num2words, scipy" ||
        refuse "the corpus lole_mini is synthesized with more packages: pip install 'espnet_lole[mini]', or --corpus"
    # shellcheck disable=SC2086  # a list of languages
    PYTHONPATH="local:${PYTHONPATH:-}" "${python}" -m lole_mini.prepare \
        --output data/lole_mini --nj "${nj}" ${langs:+--langs ${langs}}
fi
if [ "$(basename "${corpus}")" = human.yaml ]; then
    # shellcheck disable=SC2086  # a list of languages
    PYTHONPATH="local:${PYTHONPATH:-}" "${python}" -m human.prepare \
        --clones "${clones}" --output data/human.csv ${langs:+--langs ${langs}}
fi
"${python}" -m espnet_lole.bin.lole_data collect --corpus "${corpus}" --datadir data --langs "${langs}" \
    --download "${download}" ${backbone:+--backbone "${backbone}"}
