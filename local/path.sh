# Sourced at the end of path.sh, this recipe's and ESPnet's: what overrides its settings.
# shellcheck shell=bash
# threads wait a moment at full speed, then leave the core to other processes
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-2000}"
# glibc: reuse freed memory instead of returning it to the system, which takes a third of a training step on a CPU
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-17179869184}"
export MALLOC_TOP_PAD_="${MALLOC_TOP_PAD_:-67108864}"
# Slurm's srun: a process that fails ends those of the other nodes, which would wait for it; all cores of the job are used
export SLURM_KILL_BAD_EXIT=1
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK}"
