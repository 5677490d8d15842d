"""LoRA on diffusers models: made, read and written in the keys of several programs."""
