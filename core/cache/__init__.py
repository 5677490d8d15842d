"""From videos to a latent store: plan the work, share it between processes, encode, write."""
