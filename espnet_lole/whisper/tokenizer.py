"""Whisper's tokens without a network: the vocabulary of every multilingual checkpoint is in ``assets``."""

from __future__ import annotations

import base64
from functools import cache, cached_property

import tiktoken
from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS_MULTI

from espnet_lole.languages import UNSPACED, check_language, whisper_languages
from espnet_lole.whisper.assets import VOCABULARY

_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""What no token extends beyond, from openai/whisper."""
_NUM_LANGUAGES = {51865: 99, 51866: 100}


@cache
def build_encoding(num_languages: int = 99) -> tiktoken.Encoding:
    """Build the encoding of texts and special tokens; a text is encoded without special tokens in it."""
    lines = VOCABULARY.read_text(encoding="ascii").splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    tasks = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    times = (f"{0.02 * i:.2f}" for i in range(1501))
    names = ("endoftext", "startoftranscript", *list(whisper_languages())[:num_languages], *tasks, *times)
    special = {f"<|{name}|>": len(ranks) + i for i, name in enumerate(names)}
    return tiktoken.Encoding(VOCABULARY.name, pat_str=_WORDS, mergeable_ranks=ranks, special_tokens=special)


class WhisperTokenizer:
    """Converts texts and prompts to token ids and back.

    Args:
        vocab_size: size of the checkpoint's vocabulary, which determines its languages.

    Raises:
        ValueError: the vocabulary is not that of a multilingual Whisper.
    """

    def __init__(self, vocab_size: int) -> None:
        if vocab_size not in _NUM_LANGUAGES:
            raise ValueError(
                f"expected a multilingual Whisper with a vocabulary of {sorted(_NUM_LANGUAGES)} tokens, got "
                f"{vocab_size}: English-only checkpoints (*.en) have no language tokens; take one without .en"
            )
        self.vocab_size = vocab_size
        self._encoding = build_encoding(_NUM_LANGUAGES[vocab_size])
        self.eot, self.sot, self.transcribe, self.no_timestamps = map(
            self._encoding.encode_single_token,
            ("<|endoftext|>", "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>"),
        )
        self.timestamp_begin = self.no_timestamps + 1

    @cached_property
    def languages(self) -> dict[str, int]:
        """Language code -> token id."""
        codes = list(whisper_languages())[: _NUM_LANGUAGES[self.vocab_size]]
        return {code: self.sot + 1 + i for i, code in enumerate(codes)}

    @cached_property
    def special(self) -> list[str]:
        """All special tokens in the order of their ids, from ``<|endoftext|>`` to the last timestamp."""
        return sorted(self._encoding.special_tokens_set, key=self._encoding.encode_single_token)

    @cached_property
    def suppressed(self) -> list[int]:
        """Tokens that OpenAI's decoding never predicts: special ones, and marks that are no speech, such as ``♪``."""
        marks = (i for i in NON_SPEECH_TOKENS_MULTI if i < self.eot)
        tasks = set(range(self.sot + 1 + len(self.languages), self.no_timestamps))
        return sorted({*marks, self.sot, *tasks})

    def language(self, lang: str) -> int:
        """Return the token id of a language.

        Raises:
            ValueError: Whisper does not know the code, or this checkpoint lacks the language.
        """
        check_language(lang, f"vocabulary of {self.vocab_size} tokens", self.languages)
        return self.languages[lang]

    def prompt(self, lang: str, timestamps: bool = False) -> list[int]:
        """Return ``<|startoftranscript|><|LANG|><|transcribe|><|notimestamps|>``; with timestamps, without the last.

        In training, ``make_targets`` of ``train/targets.py`` puts it before the text.
        """
        return [self.sot, self.language(lang), self.transcribe, *([] if timestamps else [self.no_timestamps])]

    def encode(self, text: str, lang: str) -> list[int]:
        """Encode a text, which starts with a space in languages that use them, as in Whisper's training."""
        return self._encoding.encode_ordinary(text.strip() if lang in UNSPACED else " " + text.strip())

    def decode(self, ids: list[int]) -> str:
        """Decode token ids to one line of text without special tokens; a space stands for each line break."""
        text = self._encoding.decode([i for i in ids if i < self.eot])
        return " ".join(line for line in map(str.strip, text.splitlines()) if line)

    def pieces(self, ids: list[int]) -> list[str]:
        """Return each token as a token file shows it: spaces as ``▁``, incomplete UTF-8 in hexadecimal."""
        raw = [self._encoding.decode_single_token_bytes(i) for i in ids]
        return [piece.decode("utf-8", "backslashreplace").replace(" ", "▁").replace("\n", "\\n") for piece in raw]
