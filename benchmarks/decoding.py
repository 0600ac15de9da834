"""Decoding batches of many languages: a step, the encoder, and whole utterances."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from whisper.tokenizer import get_tokenizer

from benchmarks.harness import Outcome, Size, Work
from benchmarks.systems import END, LANGS, START, VOCAB, driven, espnet, mel30, mixed, ours, stock, utterances
from espnet_lole.export.whisper import save_merged
from espnet_lole.inference.kv_cache import ReplayedSteps
from espnet_lole.inference.search import SearchConfig
from espnet_lole.inference.transcriber import ExpertTranscriber, PromptTranscriber
from espnet_lole.lole.adapters import save_expert
from espnet_lole.lole.bank import ExpertBank
from espnet_lole.lole.classifier import ClassifierConfig
from espnet_lole.lole.fusion import FusionConfig
from espnet_lole.lole.mole import MoLE
from espnet_lole.whisper.model import Backbone, Encoded
from espnet_lole.whisper.tokenizer import WhisperTokens

Route = Callable[[], AbstractContextManager]
STEPS = 8
"""Tokens decoded one by one in a round of ``decode_step``."""


def batch_langs(size: Size) -> list[str]:
    """Languages of the utterances decoded together, sorted as the transcribers sort them."""
    return sorted(LANGS[i % len(LANGS)] for i in range(size.decode_batch))


def merged(size: Size) -> WhisperForConditionalGeneration:
    """The weights of the experts, which are the same in all languages, merged into a stock Whisper."""
    return copy.deepcopy(_merged(size)).to(size.device)


@cache
def _merged(size: Size) -> WhisperForConditionalGeneration:
    with tempfile.TemporaryDirectory() as folder:
        save_expert(ours(size)[1], LANGS[0], Path(folder) / LANGS[0], "")
        save_merged(stock(size), Path(folder) / LANGS[0], Path(folder) / "merged", LANGS)
        return WhisperForConditionalGeneration.from_pretrained(Path(folder) / "merged").eval()


def with_peft(size: Size) -> PeftModel:
    """The experts as adapters of ``peft``, read from the folders that the project writes."""
    return copy.deepcopy(_with_peft(size)).to(size.device, size.precision)


@cache
def _with_peft(size: Size) -> PeftModel:
    with tempfile.TemporaryDirectory() as folder:
        bank = ours(size)[1]
        for lang in LANGS:
            save_expert(bank, lang, Path(folder) / lang, "")
        model = PeftModel.from_pretrained(stock(size), Path(folder) / LANGS[0], LANGS[0])
        for lang in LANGS[1:]:
            model.load_adapter(Path(folder) / lang, lang)
        return model.eval()


def contenders(
    size: Size, lead: Callable[[ExpertBank, Tensor], AbstractContextManager]
) -> dict[str, tuple[Backbone, Route]]:
    """Ways to run a batch of many languages, driven alike, so that they differ in the adapters alone.

    Args:
        size: of the work.
        lead: how the bank routes a batch.
    """
    backbone, bank = experts(size)
    single, one = experts(size, 1)
    peft = with_peft(size)
    index = torch.tensor([LANGS.index(lang) for lang in batch_langs(size)], device=size.device)
    return {
        "experts": (backbone, partial(lead, bank, index)),
        "merged weights": (driven(merged(size), size), nullcontext),
        "one unmerged adapter": (single, partial(lead, one, torch.zeros_like(index))),
        "peft adapter_names": (
            driven(peft.get_base_model(), size),
            partial(peft.base_model._enable_peft_forward_hooks, adapter_names=batch_langs(size)),
        ),
    }


def decode_step(size: Size) -> Outcome:
    """Cached steps of the decoder, one token for each utterance; on a GPU replayed, as a search does."""
    speech = utterances(size, size.decode_batch)
    token = torch.full((size.decode_batch, 1), START, device=size.device)

    @torch.no_grad()
    def work(backbone: Backbone, route: Route, encoded: Encoded) -> None:
        with route():
            cache = backbone.new_cache()
            for _ in range(STEPS):
                backbone.logits(backbone.decode(token, encoded, cache))

    @torch.no_grad()
    def replayed(backbone: Backbone, route: Route, encoded: Encoded) -> Work:
        longest = backbone.model.config.max_target_positions
        steps = ReplayedSteps(backbone, encoded, longest, longest)
        with route():
            steps.start(token)
            steps.follow(token, None)
            steps.follow(token, None)

        @torch.no_grad()
        def again() -> None:
            for _ in range(STEPS):
                steps.follow(token, None)

        return again

    out = Outcome()
    parts = {}
    for name, (backbone, route) in contenders(size, ExpertBank.routed_steps).items():
        with torch.no_grad():
            encoded = backbone.encode(*speech)
        single = partial(work, backbone, route, encoded)
        alone = size.device == "cpu" or name == "peft adapter_names"  # which copies indices to the GPU in each step
        parts[name] = single if alone else replayed(backbone, route, encoded)
        if not alone and name == "experts":
            parts["experts, not replayed"] = single
    out.race("decode_step", parts, size.repeats)
    claims(out, "decode_step", "<= 1.15")
    return out


def encode(size: Size) -> Outcome:
    """The encoder."""
    speech = utterances(size, size.decode_batch)

    @torch.no_grad()
    def work(backbone: Backbone, route: Route) -> None:
        with route():
            backbone.encode(*speech)

    out = Outcome()
    out.race(
        "encode",
        {name: partial(work, *parts) for name, parts in contenders(size, ExpertBank.routed).items()},
        size.repeats,
    )
    claims(out, "encode", "<= 1.10")
    return out


def claims(out: Outcome, name: str, bar: str) -> None:
    """Experts against merged weights, with the bar, and against the others."""
    out.claim(name, "experts", "merged weights", bar)
    out.claim(name, "experts", "peft adapter_names")
    out.claim(name, "experts", "one unmerged adapter")


def searching(size: Size) -> SearchConfig:
    """A search of ``size.tokens`` tokens for every utterance."""
    return SearchConfig(size.beam, maxlenratio=(size.tokens + 0.5) / (50 * size.seconds))


def experts(size: Size, languages: int = len(LANGS)) -> tuple[Backbone, ExpertBank]:
    """The experts, held as those that only decode are."""
    backbone, bank = ours(size, languages)
    bank.store_in(size.precision)
    return backbone, bank


def with_experts(size: Size, speech: list[Tensor]) -> Callable[[], list[list[int]]]:
    """Ours, in one batch of all languages."""
    backbone, bank = experts(size)
    system = ExpertTranscriber(backbone, WhisperTokens(VOCAB), bank, searching(size))
    return lambda: [t.hypothesis.tokens for t in system(speech, batch_langs(size))]


def plain(
    size: Size, speech: list[Tensor], model: WhisperForConditionalGeneration, bank: ExpertBank | None = None
) -> Work:
    """Our search on a Whisper without experts."""
    system = PromptTranscriber(driven(model, size), WhisperTokens(VOCAB), bank, LANGS, searching(size))
    return lambda: system(speech, batch_langs(size))


def peft_generate(size: Size, speech: list[Tensor]) -> Work:
    """``generate`` of ``transformers`` with ``peft``'s adapter names, on 30 s, as its Whisper takes no less."""
    model, langs = with_peft(size), batch_langs(size)
    options = {"num_beams": size.beam, "max_new_tokens": size.tokens, "task": "transcribe", "language": langs}

    @torch.no_grad()
    def work() -> None:
        model.generate(input_features=mel30(torch.stack(speech)).to(size.precision), adapter_names=langs, **options)

    return work


def espnet_search(size: Size, speech: list[Tensor]) -> Callable[[], list[list[int]]]:
    """ESPnet's batch beam search, an utterance at a time, on merged weights."""
    from espnet.nets.batch_beam_search import BatchBeamSearch

    model, tokens = espnet(merged(size)).eval(), WhisperTokens(VOCAB)
    search = BatchBeamSearch(
        beam_size=size.beam, vocab_size=VOCAB, sos=START, eos=END, token_list=[str(i) for i in range(VOCAB)],
        scorers={"decoder": model.decoder}, weights={"decoder": 1.0}, normalize_length=True,
    )  # fmt: skip

    @torch.no_grad()
    def work() -> list[list[int]]:
        found = []
        for row, lang in zip(speech, batch_langs(size), strict=True):
            search.set_hyp_primer(tokens.prompt(lang))
            with mixed(size):
                states, _ = model.encode(row[None], torch.tensor([len(row)], device=size.device))
                ids = search(states[0], maxlenratio=-size.tokens)[0].yseq.tolist()
            found.append([i for i in ids if i < END])
        return found

    return work


def whole_decode(size: Size) -> Outcome:
    """Whole utterances of many languages, from samples to tokens, at equal beam."""
    speech, out = list(utterances(size, size.decode_batch)[0]), Outcome()
    mine, theirs = with_experts(size, speech), espnet_search(size, speech)
    parts = {"experts": mine, "peft generate": peft_generate(size, speech), "ESPnet beam search": theirs}
    out.race("whole_decode", parts, max(2, size.repeats // 2))
    same = [a == b for a, b in zip(mine(), theirs(), strict=True)]
    out.add("whole_decode texts that differ", "experts and ESPnet", "%", [100 * (1 - sum(same) / len(same))])
    out.claim("whole_decode", "experts", "peft generate", ">= 1.5")
    out.claim("whole_decode", "experts", "ESPnet beam search", ">= 5")
    return out


def merged_student(size: Size) -> Outcome:
    """A merged student against a stock Whisper, both in our search, and against its export to faster-whisper."""
    speech, out = list(utterances(size, size.decode_batch)[0]), Outcome()
    parts = {"merged student": plain(size, speech, merged(size)), "stock Whisper": plain(size, speech, stock(size))}
    with tempfile.TemporaryDirectory() as folder:
        if size.device == "cpu":  # on a GPU its libraries are not those of torch
            parts["faster-whisper"] = faster(size, speech, Path(folder))
        out.race("merged_student", parts, size.repeats)
    for peer, bar in (("stock Whisper", "<= 1.02"), ("faster-whisper", "")):
        if peer in parts:
            out.claim("merged_student", "merged student", peer, bar)
    return out


def faster(size: Size, speech: list[Tensor], folder: Path) -> Work:
    """The merged student as faster-whisper runs it: CTranslate2 in float32, on 30 s, all utterances in one batch."""
    import ctranslate2
    from ctranslate2.converters.transformers import TransformersConverter

    merged(size).save_pretrained(folder / "merged")
    TransformersConverter(str(folder / "merged")).convert(str(folder / "converted"))
    names = {i: name for name, i in get_tokenizer(True).special_tokens.items()}
    vocabulary = [names.get(i, f"token {i}") for i in range(VOCAB)]
    (folder / "converted" / "vocabulary.json").write_text(json.dumps(vocabulary))
    model = ctranslate2.models.Whisper(
        str(folder / "converted"), intra_threads=torch.get_num_threads(), compute_type="float32"
    )
    tokens = WhisperTokens(VOCAB)
    prompts = [tokens.prompt(lang) for lang in batch_langs(size)]
    longest = len(prompts[0]) + size.tokens

    def work() -> None:
        features = ctranslate2.StorageView.from_array(mel30(torch.stack(speech)).numpy())
        model.generate(
            features, prompts, beam_size=size.beam, max_length=longest, suppress_blank=False, suppress_tokens=[]
        )

    return work


def mole(size: Size) -> Outcome:
    """The shallow layers and the classifier of MoLE against the same layers of the backbone."""
    speech, shared = utterances(size, size.decode_batch), max(1, size.layers // 2)
    backbone, bank = ours(size)
    system = MoLE(backbone, bank, FusionConfig(shared), ClassifierConfig())
    for part in (system.fusion, system.classifier):
        part.to(size.device)
    system.merge()
    system.classifier.eval()
    bare, _ = ours(size, None)

    @torch.no_grad()
    def with_mole() -> None:
        system.deep(shallow := system.shallow(*speech))
        system.classifier(shallow)

    @torch.no_grad()
    def without() -> None:
        bare.encode(*speech)

    out = Outcome()
    out.race("mole", {"MoLE": with_mole, "backbone": without}, size.repeats)
    out.claim("mole", "MoLE", "backbone", "<= 1.02")
    return out
