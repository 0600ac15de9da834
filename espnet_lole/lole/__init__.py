"""The bank of LoRA language experts."""
