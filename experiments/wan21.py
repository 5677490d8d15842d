"""The paper's Stage I on Wan 2.1: `wan21-1.3b-4x4x2`, `wan21-14b-4x4x2` and their rates.

The 1.3B is the smallest of the published backbones, and so the cheapest real one to begin with.
"""

from __future__ import annotations

from ..backbones.wan.published_specs import Wan21Large, Wan21Small
from .paper import family

WAN21_1_3B_2X2X1, WAN21_1_3B_2X2X2, WAN21_1_3B_2X2X4, WAN21_1_3B_4X4X2 = family(
    "wan21-1.3b", Wan21Small()
)
WAN21_14B_2X2X1, WAN21_14B_2X2X2, WAN21_14B_2X2X4, WAN21_14B_4X4X2 = family(
    "wan21-14b", Wan21Large()
)
