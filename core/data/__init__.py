"""Videos into latent stores, and windows out of them."""
