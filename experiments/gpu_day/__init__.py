"""TODO gpu_day."""
