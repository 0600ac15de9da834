# Sourced by every script, and by each job of a cluster, which gets no other variable of the environment than PATH.
# shellcheck shell=bash
LOLE_ROOT=${LOLE_ROOT:-$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../.." && pwd)}
export PYTHONPATH="${LOLE_ROOT}:${PYTHONPATH:-}"
export PATH="${PWD}/utils:${PATH}"
export PYTHONIOENCODING=UTF-8 LC_ALL=C.UTF-8
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
# threads wait a moment at full speed, then leave the core to other processes
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-2000}"
# glibc: reuse freed memory instead of returning it to the system, which takes a third of a training step on a CPU
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-17179869184}"
export MALLOC_TOP_PAD_="${MALLOC_TOP_PAD_:-67108864}"
# Slurm's srun: a process that fails ends those of the other nodes, which would wait for it; all cores of the job are used
export SLURM_KILL_BAD_EXIT=1
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK}"
if [ -d "${LOLE_ROOT}/.venv/bin" ]; then
    export PATH="${LOLE_ROOT}/.venv/bin:${PATH}"
fi
