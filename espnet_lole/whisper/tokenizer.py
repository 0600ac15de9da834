"""Whisper's tokens without a network: openai-whisper carries the vocabulary of every multilingual checkpoint."""

from __future__ import annotations

from functools import cached_property

from whisper.tokenizer import LANGUAGES, get_tokenizer

from espnet_lole.languages import UNSPACED, check_language

_NUM_LANGUAGES = {51865: 99, 51866: 100}


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
        self._tokenizer = get_tokenizer(True, num_languages=_NUM_LANGUAGES[vocab_size])
        self.sot: int = self._tokenizer.sot
        self.eot: int = self._tokenizer.eot
        self.transcribe: int = self._tokenizer.transcribe
        self.no_timestamps: int = self._tokenizer.no_timestamps
        self.timestamp_begin: int = self._tokenizer.timestamp_begin

    @cached_property
    def languages(self) -> dict[str, int]:
        """Language code -> token id."""
        codes = list(LANGUAGES)[: _NUM_LANGUAGES[self.vocab_size]]
        return {code: self.sot + 1 + i for i, code in enumerate(codes)}

    @cached_property
    def suppressed(self) -> list[int]:
        """Tokens that OpenAI's decoding never predicts: special ones, and marks that are no speech, such as ``♪``."""
        special = ("sot", "sot_prev", "sot_lm", "no_speech", "transcribe", "translate")
        return sorted({*self._tokenizer.non_speech_tokens, *(getattr(self._tokenizer, name) for name in special)})

    def language(self, lang: str) -> int:
        """Return the token id of a language.

        Raises:
            ValueError: Whisper does not know the code, or this checkpoint lacks the language.
        """
        check_language(lang, f"vocabulary of {self.vocab_size} tokens", self.languages)
        return self.languages[lang]

    def prompt(self, lang: str, timestamps: bool = False) -> list[int]:
        """Return ``<|startoftranscript|><|LANG|><|transcribe|><|notimestamps|>``; with timestamps, without the last.

        In training, ``make_targets`` of ``espnet_model.py`` puts it before the text.
        """
        return [self.sot, self.language(lang), self.transcribe, *([] if timestamps else [self.no_timestamps])]

    def encode(self, text: str, lang: str) -> list[int]:
        """Encode a text, which starts with a space in languages that use them, as in Whisper's training."""
        return self._tokenizer.encoding.encode_ordinary(text.strip() if lang in UNSPACED else " " + text.strip())

    def decode(self, ids: list[int]) -> str:
        """Decode token ids to one line of text without special tokens; a space stands for each line break."""
        text = self._tokenizer.encoding.decode([i for i in ids if i < self.eot])
        return " ".join(line for line in map(str.strip, text.splitlines()) if line)

    def pieces(self, ids: list[int]) -> list[str]:
        """Return each token as a token file shows it: spaces as ``▁``, incomplete UTF-8 in hexadecimal."""
        raw = [self._tokenizer.encoding.decode_single_token_bytes(i) for i in ids]
        return [piece.decode("utf-8", "backslashreplace").replace(" ", "▁").replace("\n", "\\n") for piece in raw]
