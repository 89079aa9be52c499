"""A real process reward model to measure quantization on: SmolLM2-135M, a LoRA and TRL's head."""
