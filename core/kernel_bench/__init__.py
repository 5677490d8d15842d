"""`longtake bench kernels`: the paper's encoder at real sizes beside peers, limits and goals."""
