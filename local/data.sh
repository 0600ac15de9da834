#!/usr/bin/env bash
# Collect a corpus in data/train, data/dev and data/test_<lang>; lole_mini is synthesized first.
set -euo pipefail

corpus=conf/corpora/lole_mini.yaml # corpus file, see conf/corpora/example.yaml
langs=                             # only these languages, e.g. "de en"
nj=2                               # processes

# shellcheck disable=SC1091
. utils/parse_options.sh

if [ "$(basename "${corpus}")" = lole_mini.yaml ]; then
    # shellcheck disable=SC2086  # a list of languages
    PYTHONPATH="local:${PYTHONPATH:-}" ${python:-python3} -m lole_mini.prepare \
        --output data/lole_mini --nj "${nj}" ${langs:+--langs ${langs}}
fi
${python:-python3} -m espnet_lole.bin.lole_data collect --corpus "${corpus}" --datadir data --langs "${langs}"
