# Sourced by every script: the environment of the recipe.
# shellcheck shell=bash
LOLE_ROOT=${LOLE_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)}
export PYTHONPATH="${LOLE_ROOT}:${PYTHONPATH:-}"
export PATH="${PWD}/utils:${PATH}"
export PYTHONIOENCODING=UTF-8 LC_ALL=C.UTF-8
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
# threads wait a moment at full speed, then leave the core to other processes
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-2000}"
# glibc: reuse freed memory instead of returning it to the system, which takes a third of a training step on a CPU
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-17179869184}"
export MALLOC_TOP_PAD_="${MALLOC_TOP_PAD_:-67108864}"
if [ -d "${LOLE_ROOT}/.venv/bin" ]; then
    export PATH="${LOLE_ROOT}/.venv/bin:${PATH}"
fi
