"""An experiment is another one with two fields changed."""

from attrs import evolve

from longtake.experiments.tiny import TINY_WAN_2X2X2

from . import MeanPool

TINY = evolve(TINY_WAN_2X2X2, name="mean-pool-tiny", compressors=(MeanPool(),))
