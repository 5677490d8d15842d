"""Sampling: from noise to latents, as diffusers' pipelines do it, with memory."""
