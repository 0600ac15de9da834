# Sourced by every script: the environment of the recipe.
# shellcheck shell=bash
LOLE_ROOT=${LOLE_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)}
export PYTHONPATH="${LOLE_ROOT}:${PYTHONPATH:-}"
export PATH="${PWD}/utils:${PATH}"
export PYTHONIOENCODING=UTF-8 LC_ALL=C.UTF-8
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # waiting threads leave the core to the data worker
if [ -d "${LOLE_ROOT}/.venv/bin" ]; then
    export PATH="${LOLE_ROOT}/.venv/bin:${PATH}"
fi
