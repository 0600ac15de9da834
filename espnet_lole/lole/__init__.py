"""The method: LoRA language experts, LoRA MoLE and LoRA KD."""
