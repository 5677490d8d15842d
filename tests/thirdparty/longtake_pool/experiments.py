"""An experiment is another one with two fields changed."""

from attrs import evolve

from longtake.authors import load_experiment

from . import MeanPool

TINY_WAN = load_experiment("tiny-wan-2x2x2")[1]
TINY = evolve(TINY_WAN, name="mean-pool-tiny", compressors=(MeanPool(),))
