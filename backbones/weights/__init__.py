"""Weights of diffusers models, from wherever users have them: checked first, then read."""
