# Sourced by every script, and by each job of a cluster, which gets no other variable of the environment than PATH.
# In an ESPnet checkout, `lole recipe` takes ESPnet's instead.
# shellcheck shell=bash
LOLE_ROOT=${LOLE_ROOT:-$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../.." && pwd)}
if [ -f "${LOLE_ROOT}/espnet_lole/__init__.py" ]; then # a checkout; elsewhere the package is installed
    export PYTHONPATH="${LOLE_ROOT}:${PYTHONPATH:-}"
    [ ! -d "${LOLE_ROOT}/.venv/bin" ] || export PATH="${LOLE_ROOT}/.venv/bin:${PATH}"
fi
export PATH="${PWD}/utils:${PATH}"
export PYTHONIOENCODING=UTF-8 LC_ALL=C.UTF-8
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
# shellcheck disable=SC1091
. local/path.sh
