# Sourced below a script's options, variables with a comment each: --name VALUE sets `name`, --help lists them.
# A default of true or false makes the option Boolean, a whole number makes it a whole number.
# shellcheck shell=bash
refuse() {
    echo "error: $*" >&2
    exit 1
}

explain_missing() { # option $1 with value $2, if ESPnet's asr.sh has it; a value that asks for nothing is accepted
    local names accepted reason
    while IFS='|' read -r names accepted reason; do
        [[ " ${names} " == *" $1 "* ]] || continue
        [[ -z $2 || " ${accepted} " == *" $2 "* ]] || refuse "--$1 $2 is an option of ESPnet's asr.sh alone:${reason}"
        return
    done < <(grep -v '^#' lole_utils/options_of_asr_sh.txt)
    refuse "unknown option --$1: see $0 --help"
}

own_options=$(sed -n '/parse_options.sh/q; /^[a-z_]*=.*#/p' "$0")
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h)
        sed -n '2,/^set /s/^# \(.*\)/\1/p; /^set /,/parse_options.sh/s/^\(# [A-Z].*\|[a-z_]*=.*#.*\)$/\1/p' "$0" |
            sed 's/^\([a-z_]*=\)/    --\1/'
        exit 0
        ;;
    --*=*) refuse "an option and its value are two words, as in --stage 11, got '$1'" ;;
    --*) ;;
    *) refuse "'$1' is no option: options begin with two dashes, as in --stage 11; see $0 --help" ;;
    esac
    option=${1#--}
    option=${option//-/_}
    [ $# -gt 1 ] || refuse "option $1 needs a value"
    value=$2
    shift 2
    if ! grep -q "^${option}=" <<<"${own_options}"; then
        explain_missing "${option}" "${value}"
        continue
    fi
    case ${!option} in
    true | false)
        case ${value,,} in
        true | yes | 1) value=true ;;
        false | no | 0) value=false ;;
        *) refuse "--${option} takes true or false, got '${value}'" ;;
        esac
        ;;
    "" | *[!0-9]*) ;;
    *) [[ ${value} =~ ^[0-9]+$ ]] || refuse "--${option} takes a whole number, got '${value}'" ;;
    esac
    printf -v "${option}" '%s' "${value}"
done
