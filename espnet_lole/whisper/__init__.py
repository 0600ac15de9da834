"""Whisper: features, tokens, encoder and decoder."""
