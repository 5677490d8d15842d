"""Stage I training: the loss, the loop, checkpoints and liveness."""
