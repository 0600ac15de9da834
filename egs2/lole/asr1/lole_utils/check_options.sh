# Sourced by lole.sh below its functions: refuse options that contradict each other, before anything is started.
# Sets trained (the systems that are trained here) and what follows from the options: skip_stages, asr_exp, sets.
# shellcheck shell=bash disable=SC2034,SC2154
[ -n "${corpus}" ] && [ -n "${backbone}" ] || fail "--corpus and --backbone are required; run.sh gives the demo's"
[ "${num_nodes}" -ge 1 ] && [ "${inference_nj}" -ge 1 ] || fail "--num_nodes and --inference_nj take a number from 1"
[ "${num_nodes}" -eq 1 ] || [ "${cmd_backend}" != ssh ] || fail "cmd_backend ssh has one node: use slurm, or --num_nodes 1"
[ "${ngpu}" -eq 0 ] || ! nodes_are_processes ||
    fail "--num_nodes with GPUs needs the nodes of a cluster (cmd_backend=slurm): --ngpu uses all GPUs of this machine"
[[ ${audio_format} =~ ^(flac|wav)$ ]] || fail "--audio_format takes flac or wav, not ${audio_format}: no arks are written"

trained=()
for system in ${systems}; do
    case $(base_system "${system}") in
    experts | mole | student | multilingual | full) trained+=("${system}") ;;
    zero_shot) continue ;;
    espnet | espnet_whisper)
        [ "${stage}" -eq 13 ] || fail "system ${system} is trained and decoded by run_baselines.sh"
        continue
        ;;
    *) fail "unknown system ${system}: choose from zero_shot experts mole student multilingual full, or a variant" ;;
    esac
    for config in "${asr_config%.yaml}"{,"_$(base_system "${system}")","_${system}"}.yaml; do
        require "${config}" "it configures ${system}; see --asr_config"
    done
done
[ -z "${asr_tag}${asr_exp}" ] || [ "${#trained[@]}" -le 1 ] ||
    fail "--asr_tag and --asr_exp name one experiment: give one of ${trained[*]} at a time as --systems"
asr_exp=${asr_exp:-${asr_tag:+${expdir}/lole_${asr_tag}}}

[ "${train_set}" != "${valid_set}" ] || fail "--train_set and --valid_set are both ${train_set}: they must differ"
names=''
for name in ${test_sets}; do
    [ "${name}" != "${train_set}" ] || fail "the training set ${name} is one of --test_sets: name other test sets"
    if [ "${name}" = "${valid_set}" ]; then
        eval_valid_set=true # as in asr.sh
    elif [[ " ${names} " != *" ${name} "* ]]; then
        names+="${names:+ }${name}"
    fi
done
test_sets=${names}

[ "${stage}" -le "${stop_stage}" ] ||
    fail "stage ${stage} is after --stop_stage ${stop_stage}: give --stop_stage ${stage} too"
! "${skip_data_prep}" || skip_stages+=" 1 2 3 4 5"
! "${skip_train}" || skip_stages+=" 2 5 10 11"
! "${skip_eval}" || skip_stages+=" 12 13"
! "${skip_packing}" || skip_stages+=" 14"
! "${skip_upload_hf}" || skip_stages+=" 15"
stages=''
for number in 1 2 3 4 5 10 11 12 13 14 15; do
    [ "${number}" -lt "${stage}" ] || [ "${number}" -gt "${stop_stage}" ] || [[ " ${skip_stages} " == *" ${number} "* ]] ||
        stages+="${number} "
done
[ -n "${stages}" ] || fail "no stage is left between ${stage} and ${stop_stage}: stages 14 and 15 need" \
    "--skip_packing false and --skip_upload_hf false; see also --skip_stages, --skip_train and the like"

if [[ " ${stages}" == *" 15 "* ]]; then
    [[ ${hf_repo} =~ ^[^/]+/[^/]+$ ]] || fail "stage 15 uploads to --hf_repo <user>/<model>, got '${hf_repo}'"
    [ "${#trained[@]}" -eq 1 ] || fail "--hf_repo is the repository of one system: give one of ${trained[*]} as --systems"
fi
