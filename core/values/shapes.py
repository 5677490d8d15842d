"""Shape letters of longtake, once (conventions C.2), and the tensor types made of them.

| letter | counts |
|---|---|
| B | samples in the batch |
| C | channels of a latent cell |
| T H W | latent frames, rows and columns |
| F P Q | video frames, pixel rows and columns |
| N D | memory tokens, and the width of the DiT's hidden space |
| L E | text tokens, and the width of a text embedding |
| K | queried latent frames |
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

Latents: TypeAlias = Float[Tensor, "B C T H W"]
Targets: TypeAlias = Float[Tensor, "B C K H W"]
Pixels: TypeAlias = Float[Tensor, "B 3 F P Q"]
Bytes: TypeAlias = UInt8[Tensor, "B 3 F P Q"]
Tokens: TypeAlias = Float[Tensor, "B N D"]
Coordinates: TypeAlias = Float[Tensor, "B N 3"]
Valid: TypeAlias = Bool[Tensor, "B N"]
Frames: TypeAlias = Int64[Tensor, "B K"]
Counts: TypeAlias = Int64[Tensor, " B"]
