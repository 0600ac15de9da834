"""The stages of lole.sh with a stand-in for Python, which writes down its command lines."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from recipes import ROOT

PYTHON = """#!/usr/bin/env bash
echo "$*" >> calls
if [ "$2" = espnet2.bin.launch ]; then
    while [ "$1" != -- ]; do [ "$1" != --log ] || log=$2; shift; done
    "${@:2}" > "${log}"; exit
fi
if [ "$2" = espnet_lole.bin.lole_train ]; then echo "1/1epoch started"; fi
case "$*" in *one_broken*"--share 2/"*) echo "ValueError: broken"; exit 1 ;; *one_broken*) exec echo "Error: x" ;; esac
case "$*" in *wait*) sleep 60 ;; *broken*) echo "ValueError: broken"; exit 1 ;; esac
"""
SET = {"wav.scp": "a a.wav\n", "text": "a ja\n", "utt2lang": "a de\nb tr\n", "utt2num_samples": "a 16000\n"}
TRAIN = ("--stage", "11", "--stop_stage", "11")
OPTIONS_OF_ASR_SH = """
    stage stop_stage skip_stages skip_data_prep skip_train skip_eval skip_packing skip_upload_hf eval_valid_set ngpu
    num_nodes nj inference_nj gpu_inference dumpdir expdir python use_lightning local_data_opts
    post_process_local_data_opts auxiliary_data_tags speed_perturb_factors feats_type audio_format
    multi_columns_input_wav_scp multi_columns_output_wav_scp fs min_wav_duration max_wav_duration token_type nbpe
    bpemode oov blank sos_eos bpe_input_sentence_size bpe_nlsyms bpe_char_cover hugging_face_model_name_or_path
    use_ngram ngram_exp ngram_num use_lm lm_tag lm_exp lm_stats_dir lm_config lm_args use_word_lm num_splits_lm
    word_vocab_size
    use_prompt use_lang_prompt use_nlp_prompt asr_task asr_tag asr_exp asr_stats_dir asr_config asr_args
    pretrained_model ignore_init_mismatch feats_normalize num_splits_asr num_ref num_inf sot_asr hf_repo use_k2
    k2_ctc_decoding use_nbest_rescoring num_paths nll_batch_size k2_config use_streaming use_maskctc batch_size
    inference_tag inference_config inference_args inference_lm inference_ngram inference_asr_model download_model
    train_set valid_set test_sets bpe_train_text lm_train_text lm_dev_text lm_test_text nlsyms_txt cleaner hyp_cleaner
    g2p lang score_opts local_score_opts asr_speech_fold_length asr_text_fold_length lm_fold_length
    """.split()
"""Of ESPnet's master in June 2026."""


class Script:
    """The recipe's folder with formatted data of de and tr."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for file in (ROOT / "egs2" / "lole" / "asr1").iterdir():
            if file.name not in ("data", "dump", "exp"):
                (folder / file.name).symlink_to(file.resolve())
        (folder / "python").write_text(PYTHON)
        (folder / "python").chmod(0o755)
        for name in ("train", "dev", "test_de", "test_tr", "test_fr"):
            (folder / "dump" / "raw" / name).mkdir(parents=True)
            for table, content in SET.items():
                (folder / "dump" / "raw" / name / table).write_text(content)

    def start(self, *options: str, script: str = "run.sh", **env: str) -> subprocess.Popen[str]:
        command = [f"./{script}", "--python", "./python", *options]
        env = os.environ | {"LOLE_ROOT": str(ROOT)} | env
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=env, start_new_session=True, **pipes)

    def run(self, *options: str, script: str = "run.sh", fails: bool = False, **env: str) -> str:
        with self.start(*options, script=script, **env) as process:
            printed = process.communicate(timeout=60)[0]
        assert (process.returncode != 0) == fails, printed
        return printed

    def calls(self, module: str) -> list[str]:
        """Return the command lines of a module, one for each call."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if line.startswith(f"-m {module} ")]


def stages(printed: str) -> list[int]:
    return [int(number) for number in re.findall(r"Stage (\d+):", printed)]


@pytest.fixture
def script(tmp_path) -> Script:
    return Script(tmp_path)


def test_help_lists_every_option_with_its_meaning(script):
    printed = script.run("--help", script="lole.sh")
    source = (script.folder / "lole.sh").read_text().partition("parse_options.sh")[0]
    options = re.findall(r"^([a-z_]+)=.*#", source, re.MULTILINE)
    assert len(options) > 25 and all(f"--{name}=" in printed for name in options)


def test_a_system_is_trained_with_its_own_configuration_over_the_shared_one(script):
    script.run(*TRAIN, "--systems", "zero_shot student_long", "--seed", "3", "--asr_args", "--max_epoch 1")
    (call,) = script.calls("espnet_lole.bin.lole_train")
    configs = "conf/mini/train.yaml conf/mini/train_student.yaml conf/mini/train_student_long.yaml"
    assert f"--system student --config {configs} --experts exp/lole_train_experts_raw_lole_mini_seed3/adapters" in call
    assert "--output_dir exp/lole_train_student_long_raw_lole_mini_seed3" in call and "--seed 3" in call
    assert "--langs de tr" in call and call.endswith("--max_epoch 1")


def test_a_tag_names_the_experiment_and_not_that_of_the_experts(script):
    script.run(*TRAIN, "--systems", "mole", "--asr_tag", "mine")
    (call,) = script.calls("espnet_lole.bin.lole_train")
    assert (
        "--output_dir exp/lole_mine" in call and "--experts exp/lole_train_experts_raw_lole_mini_seed0/adapters" in call
    )


def test_a_training_resumes_unless_another_one_is_asked_for(script):
    script.run(*TRAIN, "--systems", "experts")
    script.run(*TRAIN, "--systems", "experts", "--resume", "false")
    assert [" --resume true " in call for call in script.calls("espnet_lole.bin.lole_train")] == [True, False]


def test_a_manifest_names_the_experiment_as_a_yaml_does(script):
    script.run(*TRAIN, "--systems", "experts", "--corpus", "some/where/mine.csv")
    (call,) = script.calls("espnet_lole.bin.lole_train")
    assert "--output_dir exp/lole_train_experts_raw_mine_seed0" in call


def test_corpus_and_backbone_are_enough_for_the_configurations_of_the_paper(script):
    script.run(*TRAIN, "--corpus", "mine.csv", "--backbone", "medium", "--systems", "mole", script="lole.sh")
    (call,) = script.calls("espnet_lole.bin.lole_train")
    assert "--config conf/train.yaml conf/train_mole.yaml" in call and "--backbone medium" in call


def test_a_system_is_decoded_in_its_scenarios_on_the_test_sets_of_the_languages(script):
    script.run("--stage", "12", "--stop_stage", "12", "--inference_args", "--beam_size 5")
    calls = {call.split()[3]: call for call in script.calls("espnet_lole.bin.lole_inference")}
    assert "--langs de tr " in calls["models/whisper-nano"]
    assert "--scenarios aware agnostic --test_dirs" in calls["exp/lole_train_experts_raw_lole_mini_seed0"]
    assert "--scenarios aware agnostic --test_dirs" in calls["exp/lole_train_mole_raw_lole_mini_seed0"]
    assert len(calls) == 4 and all(
        "--test_dirs dump/raw/test_de dump/raw/test_tr --output_dir" in c for c in calls.values()
    )
    assert all("/decode_beam_size5 --config conf/mini/decode.yaml --beam_size 5" in call for call in calls.values())
    assert all(call.endswith("--share 1/1") for call in calls.values()) and not script.calls(
        "espnet_lole.bin.lole_join"
    )


def test_several_jobs_decode_a_system_and_are_joined(script):
    script.run("--stage", "12", "--stop_stage", "12", "--systems", "mole", "--inference_nj", "3")
    calls = script.calls("espnet_lole.bin.lole_inference")
    assert sorted(call.split("--share ")[1] for call in calls) == ["1/3", "2/3", "3/3"]
    (call,) = script.calls("espnet_lole.bin.lole_join")
    out = "exp/lole_train_mole_raw_lole_mini_seed0/decode"
    assert call.endswith(f"--output_dir {out} --jobs 3 --scenarios aware agnostic")
    assert (script.folder / f"{out}_logdir" / "lole_inference.3.log").is_file()


def test_the_error_of_a_failed_job_is_shown_with_its_log_and_nothing_is_joined(script):
    options = ["--systems", "experts", "--inference_nj", "3", "--inference_args", "--one_broken 1"]
    printed = script.run("--stage", "12", "--stop_stage", "12", *options, fails=True)
    error, log = printed.splitlines()[-2:]
    assert error == "error: decoding failed: ValueError: broken" and log.endswith("_logdir/lole_inference.2.log")
    assert not script.calls("espnet_lole.bin.lole_join")


def test_nodes_are_processes_of_this_machine_or_nodes_of_a_cluster(script):
    (script.folder / "slurm.pl").write_text("#!/bin/sh\n")
    (script.folder / "slurm.pl").chmod(0o755)
    path = f"{script.folder}:{os.environ['PATH']}"
    for env in ({}, {"cmd_backend": "slurm", "PATH": path}):
        script.run(*TRAIN, "--systems", "experts", "--num_nodes", "2", **env)
    local, slurm = script.calls("espnet2.bin.launch")
    assert "--cmd lole_utils/run_local.sh " in local and " --num_nodes 1 " in local and "--dist_backend gloo" in local
    assert "./python -m torch.distributed.run --standalone --nproc_per_node 2 -m espnet_lole.bin.lole_train" in local
    assert "--cmd slurm.pl " in slurm and " --num_nodes 2 " in slurm
    assert "-- ./python -m espnet_lole.bin.lole_train" in slurm and "gloo" not in slurm  # the launcher adds it


def test_scoring_gets_every_decoding(script):
    script.run("--stage", "13", "--systems", "zero_shot experts espnet")
    (call,) = script.calls("espnet_lole.bin.lole_score")
    decoded = [text.split(":exp/")[0] for text in call.split("--decoded ")[1:]]
    assert decoded == ["zero_shot:aware", "zero_shot:agnostic", "experts:aware", "experts:agnostic", "espnet:agnostic"]


def test_stages_can_be_left_out(script):
    printed = script.run("--stage", "4", "--skip_stages", "4 12", "--skip_train", "true")
    assert stages(printed) == [13]
    assert stages(script.run("--skip_data_prep", "true", "--skip_eval", "true", "--systems", "zero_shot")) == [10, 11]
    printed = script.run("--stage", "10", "--skip_stages", "11", "--skip_packing", "false", "--systems", "mole student")
    assert stages(printed) == [10, 12, 13, 14]
    archives = [call.split()[4:] for call in script.calls("espnet_lole.cli.main")]
    folder = "exp/lole_train_{0}_raw_lole_mini_seed0/lole_train_{0}_raw_lole_mini_seed0.zip"
    assert archives == [folder.format(system).split() for system in ("mole", "student")]


def test_what_is_not_trained_is_not_prepared(script):
    options = ["--stage", "2", "--stop_stage", "5", "--skip_train", "true", "--test_sets", "test_de test_de test_fr"]
    script.run(*options)
    script.run(*options, "--eval_valid_set", "true")
    first, second, third = script.calls("espnet_lole.bin.lole_data")
    assert first.endswith("--src data/test_de data/test_fr --dst dump/raw/test_de dump/raw/test_fr")
    assert "--src data/dev data/test_de data/test_fr --dst dump/raw/org/dev dump/raw/test_de" in second
    assert " filter " in third and "--src dump/raw/org/dev --dst dump/raw/dev " in third


@pytest.mark.parametrize("options", [("--eval_valid_set", "yes"), ("--test_sets", "test_de dev test_tr test_de")])
def test_the_validation_set_is_decoded_and_scored_on_request(script, options):
    script.run("--stage", "12", "--systems", "mole", *options)
    (decoded,) = script.calls("espnet_lole.bin.lole_inference")
    (scored,) = script.calls("espnet_lole.bin.lole_score")
    assert " --test_dirs dump/raw/test_de dump/raw/test_tr dump/raw/dev --output_dir" in decoded
    assert "--test_sets test_de test_tr dev --valid_set dev " in " ".join(scored.split())


@pytest.mark.parametrize("value", ["true", "True", "TRUE", "1", "yes"])
def test_booleans_are_written_in_many_ways(script, value):
    script.run("--stage", "12", "--stop_stage", "12", "--systems", "mole", "--gpu_inference", value)
    script.run(*TRAIN, "--systems", "experts", "--resume", {"true": "false", "1": "0", "yes": "no"}.get(value, "False"))
    assert " --ngpu 1 --scenarios" in (script.folder / "calls").read_text()
    assert " --resume false " in (script.folder / "calls").read_text()


def test_every_option_of_asr_sh_is_known_or_answered(script):
    source = (script.folder / "lole.sh").read_text().partition("parse_options.sh")[0]
    own = set(re.findall(r"^([a-z_]+)=.*#", source, re.MULTILINE))
    table = (script.folder / "lole_utils" / "options_of_asr_sh.txt").read_text().splitlines()
    answered = [name for line in table if line[0] != "#" for name in line.split("|")[0].split()]
    assert len(set(answered)) == len(answered) and not own & set(answered)
    assert set(OPTIONS_OF_ASR_SH) == (own | set(answered)) & set(OPTIONS_OF_ASR_SH)
    assert set(answered) - set(OPTIONS_OF_ASR_SH) == {"config"}  # of Kaldi's parse_options.sh


def test_an_option_of_asr_sh_that_asks_for_nothing_is_accepted(script):
    options = "--use_lm false --token_type whisper_multilingual --feats_type raw --fs 16k --lang noinfo --cleaner none"
    script.run("--stage", "5", "--stop_stage", "5", *options.split(), "--lm_config", "", "--feats_normalize", "")


def test_experiment_and_decoding_get_their_names_from_options(script):
    options = [
        "--systems",
        "student",
        "--asr_exp",
        "elsewhere/mine",
        "--asr_tag",
        "not_used",
        "--inference_tag",
        "fast",
    ]
    script.run("--stage", "11", *options)
    calls = (script.folder / "calls").read_text()
    assert "--output_dir elsewhere/mine " in calls and "--model elsewhere/mine " in calls
    assert "--output_dir elsewhere/mine/fast --config" in calls
    assert "student:agnostic:elsewhere/mine/fast_agnostic" in calls


def test_one_system_is_exported_then_uploaded(script):
    script.run("--stage", "15", "--skip_upload_hf", "0", "--systems", "zero_shot mole", "--hf_repo", "me/mine")
    commands = [call.removeprefix("-m espnet_lole.cli.main ") for call in script.calls("espnet_lole.cli.main")]
    exported = "export exp/lole_train_mole_raw_lole_mini_seed0 exp/hf/me/mine"
    assert commands == [exported, "upload exp/hf/me/mine me/mine"]


def test_speed_perturbation_makes_a_training_set_of_its_own(script):
    options = ["--speed_perturb_factors", "0.9 1.1", "--test_sets", "test_de"]
    script.run("--stage", "2", "--stop_stage", "4", *options)
    perturb, convert, remove = script.calls("espnet_lole.bin.lole_data")
    assert "perturb --src data/train --dst data/train_sp --factors 0.9 1.1" in perturb
    assert (
        "--src data/train_sp data/dev data/test_de --dst" in convert
        and "--dst dump/raw/train_sp dump/raw/dev " in remove
    )


def test_the_error_of_a_training_is_the_last_line_but_one(script):
    printed = script.run(*TRAIN, "--systems", "experts", "--asr_args", "--broken 1", fails=True)
    error, log = printed.splitlines()[-2:]
    assert error == "error: training failed: ValueError: broken" and "experts_raw_lole_mini_seed0/train.log" in log


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["11", "12"])
def test_a_signal_ends_what_the_script_has_started(script, stage, sent):
    args = ["--asr_args", "wait"] if stage == "11" else ["--inference_args", "wait"]
    with script.start("--stage", stage, "--stop_stage", stage, "--systems", "experts", *args) as process:
        while not (script.folder / "calls").exists() or " wait" not in (script.folder / "calls").read_text():
            time.sleep(0.05)
        time.sleep(0.2)
        (os.killpg if sent is signal.SIGINT else os.kill)(process.pid, sent)
        printed = process.communicate(timeout=10)[0]  # the pipe is closed when all processes have ended
    assert process.returncode == -sent and "stopped: the same command resumes" in printed


MISTAKES = {
    "--systems nonsense": "unknown system nonsense: choose from",
    "--systems student_nonsense": "train_student_nonsense.yaml is missing or empty",
    "--systems espnet": "trained and decoded by run_baselines.sh",
    "--asr_tag one": "--asr_tag and --asr_exp name one experiment",
    "--num_nodes 2 --ngpu 1": "--num_nodes with GPUs needs the nodes of a cluster (cmd_backend=slurm)",
    "--num_nodes none": "--num_nodes takes a whole number, got 'none'",
    "--inference_nj 0": "--inference_nj take a number from 1",
    "--gpu_inference maybe": "--gpu_inference takes true or false, got 'maybe'",
    "--stage 4.5": "--stage takes a whole number, got '4.5'",
    "--nonsense 1": "unknown option --nonsense",
    "--command 1": "unknown option --command",
    "--stage": "option --stage needs a value",
    "-stage 11": "'-stage' is no option: options begin with two dashes",
    "-s": "'-s' is no option",
    "stage 11": "'stage' is no option",
    "--ngpu 0 all": "'all' is no option",
    "--stage=11": "an option and its value are two words, as in --stage 11, got '--stage=11'",
    "--stage 14 --stop_stage 13": "stage 14 is after --stop_stage 13",
    "--stage 14": "stages 14 and 15 need --skip_packing false and --skip_upload_hf false",
    "--skip_upload_hf false": "stage 15 uploads to --hf_repo <user>/<model>, got ''",
    "--skip_upload_hf false --hf_repo mine": "stage 15 uploads to --hf_repo <user>/<model>, got 'mine'",
    "--skip_upload_hf false --hf_repo me/mine": "give one of experts mole student as --systems",
    "--asr_exp exp/one": "--asr_tag and --asr_exp name one experiment",
    "--use_lm true": "--use_lm true is an option of ESPnet's asr.sh alone: no language model is used",
    "--token_type bpe": "the vocabulary is Whisper's own",
    "--nbpe 5000": "only the baseline espnet of run_baselines.sh makes another",
    "--pretrained_model a.pth": "the pretrained Whisper is --backbone",
    "--audio_format flac.ark": "--audio_format takes flac or wav, not flac.ark",
    "--valid_set train": "--train_set and --valid_set are both train",
    "--test_sets train": "the training set train is one of --test_sets",
    "--stage 11 --dumpdir nowhere": "nowhere/raw/train/utt2num_samples is missing or empty: run stages 1 to 4",
    "--stage 12 --langs ja": "no test set of ja in dump/raw",
    "--stage 3": "data/train/utt2lang is missing or empty",
}


@pytest.mark.parametrize("options", MISTAKES)
def test_a_mistake_is_explained(script, options):
    printed = script.run(*options.split(), fails=True)
    assert MISTAKES[options] in printed and printed.splitlines()[-1].startswith("error: ")
    assert not (script.folder / "calls").exists()


def baselines(script: Script, *options: str, fails: bool = False) -> str:
    return script.run("--whisper_python", "./python", *options, script="run_baselines.sh", fails=fails)


def value(call: str, option: str) -> str:
    """Return the last value of an option."""
    return call.split(f"{option} ")[-1].split()[0]


def test_espnets_conformer_gets_tags_and_sentencepiece(script):
    baselines(script, "--baselines", "espnet", "--nbpe", "60", "--stop_stage", "12")
    (prepared,) = script.calls("espnet_lole.bin.lole_espnet_data")
    assert value(prepared, "--nbpe") == "60" and "--dst dump/espnet/train dump/espnet/dev" in prepared
    (call,) = script.calls("espnet_lole.bin.lole_espnet_train")
    assert value(call, "--bpemodel") == f"{value(prepared, '--token_dir')}/bpe.model"
    assert value(call, "--token_list") == "dump/token_list/bpe_unigram60/tokens.txt"
    assert "dump/espnet/train/text,text,text" in call and "dump/raw" not in call
    (decoding,) = script.calls("espnet_lole.bin.lole_espnet")
    assert "--scenarios agnostic" in decoding and value(decoding, "--asr_model_file").startswith(
        value(call, "--output_dir")
    )


def test_espnets_conformer_can_have_characters_and_perturbed_speed(script):
    (script.folder / "dump" / "raw" / "train_sp").mkdir()
    options = ["--token_type", "char", "--speed_perturb_factors", "0.9 1.0 1.1", "--stop_stage", "11"]
    baselines(script, "--baselines", "espnet", *options)
    (call,) = script.calls("espnet_lole.bin.lole_espnet_train")
    assert value(call, "--token_type") == "char" and "--bpemodel" not in call
    assert "dump/espnet/train_sp/text,text,text" in call and "_espnet_raw_lole_mini_sp_seed0" in call


def test_espnets_whisper_gets_the_backbone_prompts_and_an_interpreter_of_its_own(script):
    (script.folder / "other").symlink_to("python")
    options = ["--baselines", "multilingual espnet_whisper", "--whisper_python", "./other", "--stop_stage", "12"]
    baselines(script, *options, "--backbone", "some/medium.pt")
    (prepared,) = script.calls("espnet_lole.bin.lole_espnet_data")
    assert value(prepared, "--backbone") == "some/medium.pt" and value(prepared, "--pt").endswith("/medium.pt")
    (call,) = script.calls("espnet_lole.bin.lole_espnet_train")
    folder = value(prepared, "--pt").removesuffix("/medium.pt")
    for part in ("encoder", "decoder"):
        assert f"--{part}_conf whisper_model=medium --{part}_conf download_dir={folder}" in call
    for part, name in (("train", "train"), ("valid", "dev")):
        assert f"--{part}_data_path_and_name_and_type {folder}/{name}/prompt,prompt,text" in call
    assert value(call, "--token_list") == value(script.calls("espnet2.bin.whisper_export_vocabulary")[0], "--output")
    (decoding,) = script.calls("espnet_lole.bin.lole_espnet")
    assert "--scenarios agnostic aware" in decoding
    assert len(script.calls("espnet_lole.bin.lole_train")) == len(script.calls("espnet_lole.bin.lole_inference")) == 1


def test_all_baselines_are_scored_with_the_systems(script):
    baselines(script, "--stage", "13")
    (call,) = script.calls("espnet_lole.bin.lole_score")
    decoded = [text.split(":exp/")[0] for text in call.split("--decoded ")[1:]]
    assert decoded[-3:] == ["espnet:agnostic", "espnet_whisper:aware", "espnet_whisper:agnostic"]
    assert "experts:aware" in decoded and "full:agnostic" in decoded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--token_type", "phn"], "--token_type takes bpe or char"),
        (["--nbpe", "many"], "--nbpe takes a whole number"),
        (["--baselines", "espnet_large"], "conf/mini/train_espnet_large.yaml is missing"),
        (["--baselines", "espnet_whisper", "--whisper_python", "false"], "run 'make env-espnet-whisper'"),
    ],
)
def test_a_mistake_in_the_baselines_is_explained(script, options, message):
    printed = baselines(script, *options, fails=True)
    assert printed.startswith("error: ") and message in printed and not (script.folder / "calls").exists()
