"""LoRA KD: all experts distilled into one student."""
