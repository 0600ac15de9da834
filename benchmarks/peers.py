"""The software that ours is compared with, with the same random weights."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
import whisper as openai_whisper
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration
from whisper.tokenizer import get_tokenizer

from benchmarks.harness import Size, Work
from benchmarks.systems import LANGS, TOKENIZER, adapter_folder, batch_langs, mel30, merged, stock
from espnet_lole.lole.experts import DEFAULT_TARGETS
from espnet_lole.whisper.openai import rename

ESPNET_TARGETS = ["query", "key", "value", "attn.out", "mlp.0", "mlp.2"]
SEARCHES = ("espnet2.legacy.nets.batch_beam_search", "espnet.nets.batch_beam_search")
"""Where versions of ESPnet have their search; the later place first."""


def mixed(size: Size) -> AbstractContextManager:
    """Return the context in which the peers' trainers run a model: autocast, if the precision is below float32."""
    return nullcontext() if size.precision == torch.float32 else torch.autocast(size.device, size.precision)


def peft_lora(size: Size) -> nn.Module:
    """Make a Whisper of ``transformers`` with one LoRA of ``peft`` to train."""
    config = LoraConfig(r=size.rank, lora_alpha=2 * size.rank, target_modules=list(DEFAULT_TARGETS))
    return get_peft_model(stock(size).to(size.precision), config).train()


def peft_adapters(size: Size) -> PeftModel:
    """Make a Whisper of ``transformers`` with the experts as adapters of ``peft``, read from the project's folders."""
    folder = adapter_folder(size)
    model = PeftModel.from_pretrained(stock(size), folder / LANGS[0], LANGS[0])
    for lang in LANGS[1:]:
        model.load_adapter(folder / lang, lang)
    return model.eval().to(size.device, size.precision)


def peft_generate(size: Size, speech: Tensor) -> Work:
    """``generate`` of ``transformers`` with ``peft``'s adapter names, on 30 s, the only length that it takes."""
    model, langs = peft_adapters(size), batch_langs(len(speech))
    options = {"num_beams": size.beam, "max_new_tokens": size.tokens, "task": "transcribe", "language": langs}

    @torch.no_grad()
    def work() -> None:
        model.generate(input_features=mel30(speech).to(size.precision), adapter_names=langs, **options)

    return work


@contextmanager
def openai_weights(model: WhisperForConditionalGeneration) -> Iterator[None]:
    """Within the context, ``whisper.load_model`` returns this model instead of downloading one."""
    config, state = model.config, model.model.state_dict()
    made = openai_whisper.model.Whisper(
        openai_whisper.model.ModelDimensions(
            config.num_mel_bins, config.max_source_positions, config.d_model, config.encoder_attention_heads,
            config.encoder_layers, config.vocab_size, config.max_target_positions, config.d_model,
            config.decoder_attention_heads, config.decoder_layers,
        )
    )  # fmt: skip
    made.load_state_dict({name: state[rename(name)] for name in made.state_dict()})
    with (
        patch.object(openai_whisper, "load_model", lambda *_args, **_kwargs: made),
        patch.object(openai_whisper.audio, "N_MELS", config.num_mel_bins, create=True),  # ESPnet imports it
    ):
        yield


def espnet(model: WhisperForConditionalGeneration) -> nn.Module:
    """Make ESPnet's Whisper with the weights of a model."""
    from espnet2.asr.ctc import CTC
    from espnet2.asr.decoder.whisper_decoder import OpenAIWhisperDecoder
    from espnet2.asr.encoder.whisper_encoder import OpenAIWhisperEncoder
    from espnet2.asr.espnet_model import ESPnetASRModel

    vocab = model.config.vocab_size
    with openai_weights(model):
        encoder, decoder = (
            OpenAIWhisperEncoder(whisper_model="base"),
            OpenAIWhisperDecoder(vocab, 1, whisper_model="base"),
        )
    return ESPnetASRModel(
        vocab, [str(i) for i in range(vocab)], None, None, None, None, encoder, None, decoder,
        CTC(vocab, encoder.output_size()), None, ctc_weight=0.0, report_cer=False, report_wer=False,
        sym_sos=str(TOKENIZER.sot), sym_eos=str(TOKENIZER.eot),
    ).to(model.device)  # fmt: skip


def espnet_lora(size: Size) -> nn.Module:
    """Make ESPnet's Whisper with one LoRA of loralib to train."""
    from espnet2.layers.create_adapter_fn import create_lora_adapter

    model = espnet(stock(size))
    create_lora_adapter(model, size.rank, 2 * size.rank, 0.0, ESPNET_TARGETS)
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)
    return model.to(size.device).train()


def batch_beam_search() -> type:
    """Return ESPnet's class ``BatchBeamSearch``.

    Raises:
        ImportError: this version of ESPnet has it in neither of the known places.
    """
    for name in SEARCHES:
        try:
            return importlib.import_module(name).BatchBeamSearch
        except ModuleNotFoundError:
            continue
    raise ImportError(
        f"ESPnet has no BatchBeamSearch in {' or '.join(SEARCHES)}: whole_decode needs another version of it"
    )


def espnet_search(size: Size, speech: Tensor) -> Callable[[], list[list[int]]]:
    """ESPnet's batch beam search on merged weights, an utterance at a time."""
    model = espnet(merged(size)).eval()
    vocab = len(model.token_list)
    search = batch_beam_search()(
        beam_size=size.beam, vocab_size=vocab, sos=TOKENIZER.sot, eos=TOKENIZER.eot, token_list=model.token_list,
        scorers={"decoder": model.decoder}, weights={"decoder": 1.0}, normalize_length=True,
    )  # fmt: skip

    @torch.no_grad()
    def work() -> list[list[int]]:
        texts = []
        for row, lang in zip(speech, batch_langs(len(speech)), strict=True):
            search.set_hyp_primer(TOKENIZER.prompt(lang))
            with mixed(size):
                states, _ = model.encode(row[None], torch.tensor([len(row)], device=size.device))
                ids = search(states[0], maxlenratio=-size.tokens)[0].yseq.tolist()
            texts.append([i for i in ids if i < TOKENIZER.eot])
        return texts

    return work


def faster_whisper(size: Size, speech: Tensor, folder: Path) -> Work:
    """A merged Whisper as faster-whisper runs it: CTranslate2 in float32, on 30 s, all utterances in one batch."""
    import ctranslate2
    from ctranslate2.converters.transformers import TransformersConverter

    model = merged(size)
    model.save_pretrained(folder / "merged")
    TransformersConverter(str(folder / "merged")).convert(str(folder / "converted"))
    names = {i: name for name, i in get_tokenizer(True).special_tokens.items()}
    vocabulary = [names.get(i, f"token {i}") for i in range(model.config.vocab_size)]
    (folder / "converted" / "vocabulary.json").write_text(json.dumps(vocabulary))
    model = ctranslate2.models.Whisper(
        str(folder / "converted"), intra_threads=torch.get_num_threads(), compute_type="float32"
    )
    prompts = [TOKENIZER.prompt(lang) for lang in batch_langs(len(speech))]
    longest = len(prompts[0]) + size.tokens

    def work() -> None:
        features = ctranslate2.StorageView.from_array(mel30(speech).numpy())
        model.generate(
            features, prompts, beam_size=size.beam, max_length=longest, suppress_blank=False, suppress_tokens=[]
        )

    return work
