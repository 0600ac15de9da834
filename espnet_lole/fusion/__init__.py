"""LoRA MoLE: the experts of the shallow encoder layers merged into one."""
