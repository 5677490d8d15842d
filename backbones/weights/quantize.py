"""Quantised weights, through diffusers: bitsandbytes on the way in, GGUF as the file has them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ...core.errors import UserError


def bitsandbytes_config(quantize: str, dtype: torch.dtype) -> Any:
    """Give diffusers' config for `nf4` or `int8`, or None for `none`.

    Raises:
        UserError: bitsandbytes is not installed, or there is no GPU.
    """
    if quantize == "none":
        return None
    need("bitsandbytes", f"backbone.quantize {quantize}")
    if not torch.cuda.is_available():
        raise UserError(f"backbone.quantize {quantize} needs a GPU, and there is none")
    from diffusers import BitsAndBytesConfig

    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def gguf_config(dtype: torch.dtype, plain: list[str]) -> Any:
    """Give diffusers' config for a GGUF file.

    Args:
        dtype: that is computed in.
        plain: names of modules whose weights are dequantised as they are read: the encoder copies
            the first projection, and diffusers computes with few types of layers in blocks.

    Raises:
        UserError: gguf is not installed.
    """
    need("gguf", "a .gguf file")
    from diffusers import GGUFQuantizationConfig

    config = GGUFQuantizationConfig(compute_dtype=dtype)
    config.modules_to_not_convert = plain
    return config


def settle_gguf(model: nn.Module, dtype: torch.dtype) -> None:
    """Dequantise what diffusers cannot compute with: all but the weights of its own linears.

    Those are biases and norms of files that write even these in bfloat16; and what was dequantised
    while it was read becomes a parameter again.
    """
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            if isinstance(module, GGUFLinear) and name == "weight":
                continue
            if isinstance(value, GGUFParameter):
                value = dequantize_gguf_tensor(value).to(dtype)
            setattr(module, name, nn.Parameter(value.detach(), requires_grad=False))


def need(package: str, what: str) -> None:
    """Refuse what an extra is missing for.

    Raises:
        UserError: `package` cannot be imported; with the command that installs it.
    """
    if find_spec(package) is None:
        raise UserError(f'{what} needs {package}: pip install "longtake[{package}]"')
