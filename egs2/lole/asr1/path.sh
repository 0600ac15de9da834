# Sourced by every script: the environment of the recipe.
MAIN_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
export MAIN_ROOT
export PYTHONPATH="${MAIN_ROOT}:${PYTHONPATH:-}"
export PATH="${PWD}/utils:${PATH}"
export PYTHONIOENCODING=UTF-8 LC_ALL=C.UTF-8
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
if [ -d "${MAIN_ROOT}/.venv/bin" ]; then
    export PATH="${MAIN_ROOT}/.venv/bin:${PATH}"
fi
