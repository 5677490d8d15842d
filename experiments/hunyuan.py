"""The paper's Stage I on HunyuanVideo 12.8B: `hunyuan-4x4x2` and its other rates."""

from __future__ import annotations

from ..backbones.hunyuan.specs import Hunyuan
from .paper import family

HUNYUAN_2X2X1, HUNYUAN_2X2X2, HUNYUAN_2X2X4, HUNYUAN_4X4X2 = family("hunyuan", Hunyuan())
