#!/usr/bin/env bash
# Make .venv with ESPnet, PyTorch and this package, at the versions of constraints.txt.
# Call it as often as you like: a complete environment is left alone, an interrupted one is finished.
#
#   tools/setup_env.sh               takes the first Python that fits: python3, python3.13, python3.12, python3.11, python3.10
#   tools/setup_env.sh --tests       adds what only tests need: gradio, faster-whisper, a browser's driver
#   tools/setup_env.sh --espnet-whisper  makes .venv-espnet-whisper over .venv, which runs ESPnet's own Whisper
#   PYTHON=/my/python tools/setup_env.sh

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
extras=full,mini,test
base=${venv}/.complete
stamps=("${base}") # the last is that of what is asked for
unfinished=${venv}/.installing
layer=.venv-espnet-whisper # its packages hide those of .venv
layered=false
need_gb=8

say() { echo "env: $*"; }
die() { echo "env: error: $*" >&2; exit 1; }

case "${1:-}" in
"") ;;
--tests) extras+=,web,formats stamps+=("${base}-tests") ;;
--espnet-whisper) layered=true ;;
*) die "expected no option, --tests or --espnet-whisper, got '$1'." ;;
esac

# A changed requirement, or a folder that was moved, makes the stamp differ.
wanted="$(cat setup.py constraints.txt | cksum) in ${PWD}"

fits() {  # the pinned versions exist for these Pythons
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        fits "${PYTHON}" || die "PYTHON=${PYTHON} is not a Python 3.10 to 3.13; set PYTHON to one that is."
        python=${PYTHON}
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
        if fits "${candidate}"; then
            python=${candidate}
            return
        fi
    done
    die "found no Python 3.10 to 3.13 (python3 is $(python3 -V 2>&1 || true)); install one, or name it: make env PYTHON=/path/to/python."
}

check_disk() {  # what an unfinished environment already takes counts as free
    local free_kb used_kb=0
    free_kb=$(df -Pk . | awk 'NR == 2 {print $4}')
    if [ -d "${venv}" ]; then
        used_kb=$(du -sk "${venv}" | cut -f 1)
    fi
    if [ $((free_kb + used_kb)) -lt $((need_gb * 1024 * 1024)) ]; then
        die "the environment needs ${need_gb} GB in ${PWD}, which has $((free_kb / 1024 / 1024)) GB free; make room and run this again."
    fi
}

# Sets uv; makes the environment where it is missing.
make_venv() {
    if uv=$(command -v uv); then
        if ! "${venv}/bin/python" -c '' 2>/dev/null; then
            say "making ${venv} with $("${python}" -V) and the uv found at ${uv}"
            rm -rf "${venv}"
            "${uv}" venv --quiet --python "$(command -v "${python}")" "${venv}"
        fi
        return
    fi
    uv=${venv}/bin/uv
    if ! "${uv}" --version >/dev/null 2>&1; then
        say "making ${venv} with $("${python}" -V), and putting uv into it"
        "${python}" -m venv "${venv}" || die "'${python} -m venv' failed; on Debian and Ubuntu, install the package python3-venv."
        "${venv}/bin/python" -m pip install --quiet uv
    fi
}

# uv does not read pip's settings: where they name another package index, hand it over.
follow_pip() {
    local index=${PIP_INDEX_URL:-$("${python}" -m pip config get global.index-url 2>/dev/null || true)}
    if [ -n "${index}" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
        export UV_DEFAULT_INDEX=${index}
    fi
}

install() {
    local again=()
    if [ -e "${unfinished}" ]; then
        say "the last installation did not finish: going over its packages again"
        again=(--reinstall)
    fi
    touch "${unfinished}"
    say "installing the packages of constraints.txt (5 GB; what was downloaded before is not downloaded again)"
    "${uv}" pip install --compile-bytecode -p "${venv}/bin/python" -c constraints.txt ${again[@]+"${again[@]}"} -e ".[${extras}]"
    rm "${unfinished}"
    echo "${wanted}" | tee "${stamps[@]}" >/dev/null
}

# What ESPnet's own Whisper needs besides .venv: the Whisper of its tools/installers/install_whisper.sh, which is
# openai-whisper 20230308, loralib, and before Python 3.12, whose ESPnet is 202511, a transformers before 5.
install_layer() {
    local packages=(openai-whisper==20230308 ffmpeg-python==0.2.0 future==1.0.0 loralib==0.1.2) site
    wanted+=" with $("${venv}/bin/python" -V)"
    if [ "$(cat "${layer}/.complete" 2>/dev/null || true)" = "${wanted}" ]; then
        say "${layer} is up to date"
        return
    fi
    if "${venv}/bin/python" -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then
        packages+=(transformers==4.57.6 tokenizers==0.22.2 huggingface-hub==0.36.2)
    fi
    uv=$(command -v uv || echo "${venv}/bin/uv")
    find_python
    follow_pip
    say "making ${layer} over ${venv}"
    "${uv}" venv --quiet --clear --python "${venv}/bin/python" "${layer}"
    # the whisper of 2023 is built with pkg_resources, which setuptools has dropped since
    "${uv}" pip install -p "${layer}/bin/python" --no-deps -b <(echo 'setuptools<81') "${packages[@]}"
    site=$("${venv}/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "import site; site.addsitedir('${site}')" \
        >"$("${layer}/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
    echo "${wanted}" >"${layer}/.complete"
    say "environment is complete: ${PWD}/${layer}"
}

if [ "$(cat "${stamps[-1]}" 2>/dev/null || true)" = "${wanted}" ]; then
    say "environment is up to date"
    ! "${layered}" || install_layer
    exit 0
fi
have=$(cat "${base}" 2>/dev/null || true)
if [ -n "${have}" ] && [ "${have##* in }" != "${PWD}" ]; then
    say "${venv} was made in ${have##* in }: starting it anew"
    rm -rf "${venv}"
fi
rm -f "${base}" "${base}-tests"
find_python
check_disk
make_venv
follow_pip
install
say "environment is complete: ${PWD}/${venv}"
! "${layered}" || install_layer
