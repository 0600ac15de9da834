#!/usr/bin/env bash
# Prepare the corpus of --corpus as data/train, data/dev and data/test_<lang>; lole_mini is made first, if asked for.
set -euo pipefail

corpus=conf/corpora/lole_mini.yaml # language -> Kaldi directories
langs=                             # only these languages, e.g. "de en"
nj=2                               # processes

# shellcheck disable=SC1091
. utils/parse_options.sh

if [ "$(basename "${corpus}")" = lole_mini.yaml ]; then
    # shellcheck disable=SC2086  # a list of languages
    PYTHONPATH="local:${PYTHONPATH:-}" ${python:-python3} -m lole_mini.prepare --output data/lole_mini --nj "${nj}" ${langs:+--langs ${langs}}
fi
${python:-python3} -m espnet_lole.bin.lole_data collect --corpus "${corpus}" --datadir data --langs "${langs}"
