"""Files of openai/whisper, whose distribution would replace the fork that ESPnet's own Whisper needs."""

from pathlib import Path

VOCABULARY = Path(__file__).parent / "multilingual.tiktoken"
"""Tokens of every multilingual Whisper."""
SPELLINGS = Path(__file__).parent / "english.json"
"""British spelling -> American spelling, for Whisper's English normaliser."""
