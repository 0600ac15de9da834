# Sourced: each option --name value sets the shell variable name, which must have been set before; other names are errors.
# shellcheck shell=bash
while [[ ${1:-} == --* ]]; do
    if [ "$1" = --help ]; then
        sed -n '2,/^set /p' "$0" | grep '^#' | grep -v '^# shellcheck' || true
        sed -n 's/^\([a-z_0-9]*=.*#.*\)$/  --\1/p' "$0"
        exit 0
    fi
    option=${1#--}
    option=${option//-/_}
    if [ -z "${!option+set}" ]; then
        echo "error: expected an option of $0, got $1: see $0 --help" >&2
        exit 1
    fi
    if [ $# -lt 2 ]; then
        echo "error: expected a value after $1, got none" >&2
        exit 1
    fi
    printf -v "${option}" '%s' "$2"
    shift 2
done
