"""LoRA language experts on a frozen Whisper, for ESPnet."""
