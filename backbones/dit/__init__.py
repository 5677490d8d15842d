"""What every diffusion transformer here shares: weights, adapters, masks and memory streams."""
