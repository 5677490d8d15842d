"""The return probe: what a memory is worth when a video leaves a view and comes back to it."""
