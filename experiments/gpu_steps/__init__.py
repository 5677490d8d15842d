"""What a day on a GPU is for, one module a step; `..gpu_day` is the door."""
