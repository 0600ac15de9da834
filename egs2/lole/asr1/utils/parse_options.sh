# Sourced below a script's options, variables with a comment each: --name VALUE sets `name`, --help lists them.
# shellcheck shell=bash
while [ $# -gt 0 ]; do
    if [ "$1" = --help ]; then
        sed -n '2,/^set /s/^# \(.*\)/\1/p; /^set /,/parse_options.sh/s/^\(# [A-Z].*\|[a-z_]*=.*#.*\)$/\1/p' "$0" |
            sed 's/^\([a-z_]*=\)/    --\1/'
        exit 0
    fi
    option=${1#--}
    option=${option//-/_}
    if [[ $1 != --* ]]; then
        echo "error: '$1' is no option: options begin with two dashes, as in --stage 11; see $0 --help" >&2
        exit 1
    elif ! sed '/parse_options.sh/q' "$0" | grep -q "^${option}=.*#"; then
        echo "error: unknown option $1: see $0 --help" >&2
        exit 1
    elif [ $# -eq 1 ]; then
        echo "error: option $1 needs a value" >&2
        exit 1
    fi
    printf -v "${option}" '%s' "$2"
    shift 2
done
