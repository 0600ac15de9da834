#!/usr/bin/env bash
# Put the peers that the project itself does not need into benchmarks/.peers, at the versions of peers.txt.
# The rest of what they need (torch, transformers, peft, ESPnet) is that of .venv, so that all are timed on the same libraries.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if cmp -s peers.txt .peers/.complete; then
    exit 0
fi
uv=$(command -v uv || echo ../.venv/bin/uv)
rm -rf .peers
"${uv}" pip install --quiet --python ../.venv/bin/python --target .peers --no-deps --requirement peers.txt
cp peers.txt .peers/.complete
