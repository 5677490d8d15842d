"""The paper's Stage I on Wan 2.2: `wan22-5b-2x2x2`, `wan22-14b-4x4x2` and their rates.

The two that the paper trains have about 5k tokens for 20 s of 480×832: 2×2×2 on the 5B, whose VAE
is 16×, and 4×4×2 on the high-noise expert of the 14B.
"""

from __future__ import annotations

from ..backbones.wan.published_specs import Wan22Dense5B, Wan22Moe14B
from .paper import family

WAN22_5B_2X2X1, WAN22_5B_2X2X2, WAN22_5B_2X2X4, WAN22_5B_4X4X2 = family("wan22-5b", Wan22Dense5B())
WAN22_14B_2X2X1, WAN22_14B_2X2X2, WAN22_14B_2X2X4, WAN22_14B_4X4X2 = family(
    "wan22-14b", Wan22Moe14B()
)
