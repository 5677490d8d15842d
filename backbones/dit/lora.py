"""LoRA on a diffusers model through peft, in files that diffusers reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter, init

from ...core.errors import UserError
from ...core.files import open_tensors, whole_file
from ...core.lora import LoRA

if TYPE_CHECKING:
    from .model import DiT

NAME = "default"
PREFIX = "transformer."


def add(model: DiT, lora: LoRA) -> None:
    """Freeze the model and add adapters: A drawn from the seed, B zero, both float32 or wider.

    Raises:
        ValueError: it has adapters already.
    """
    if adapters(model):
        raise ValueError("this model has adapters already")
    names = [name for target in lora.targets for name in model.linears[target]]
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)
    with torch.random.fork_rng(devices=[]):  # peft draws too, before we do
        model.add_adapter(config, adapter_name=NAME)
    _settle(model)
    generator = torch.Generator().manual_seed(lora.seed)  # on the CPU: alike on every device
    for name, weight in adapters(model).items():
        if ".lora_A." in name:
            fresh = init.kaiming_uniform_(
                torch.empty(weight.shape), a=math.sqrt(5), generator=generator
            )
            weight.data.copy_(fresh)


def _settle(model: DiT) -> None:
    """Freeze the base; make adapters trainable and no narrower than float32."""
    model.requires_grad_(False)
    for weight in adapters(model).values():
        weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
        weight.requires_grad_(True)


def adapters(model: DiT) -> dict[str, Parameter]:
    """Give the LoRA parameters by the names that files use, without the prefix."""
    return {
        name.replace(f".{NAME}.", "."): weight
        for name, weight in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def save(model: DiT, path: Path) -> None:
    """Write the adapters as diffusers' pipelines do: keys, and metadata that keeps rank and alpha.

    Raises:
        ValueError: there are none.
    """
    found = adapters(model)
    if not found:
        raise ValueError("this model has no adapters to save")
    tensors = {PREFIX + name: x.detach().cpu().contiguous() for name, x in found.items()}
    config = {PREFIX + key: _plain(x) for key, x in model.peft_config[NAME].to_dict().items()}
    metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(config, sort_keys=True)}
    with whole_file(path) as part:
        save_file(tensors, part, metadata=metadata)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


def load(model: DiT, path: Path) -> None:
    """Read a LoRA file into the adapters here, or as new ones on a frozen base.

    Raises:
        UserError: no such file, other keys, another width, or another rank or alpha than here.
    """
    tensors, config = read(path)
    _check_widths(model, tensors, path)
    here = adapters(model)
    if here:
        _check_alike(model, here, tensors, config, path)
        with torch.no_grad():
            for name, weight in here.items():
                weight.copy_(tensors[name])
        return
    with torch.random.fork_rng(devices=[]):
        model.load_lora_adapter(
            {PREFIX + name: x for name, x in tensors.items()},
            adapter_name=NAME,
            metadata=config and {PREFIX + key: value for key, value in config.items()},
        )
    _settle(model)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Give the tensors by name and peft's config, both without prefix.

    Raises:
        UserError: no safetensors file, or its keys are not diffusers' for a transformer.
    """
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
    strange = [n for n in tensors if not n.startswith(PREFIX) or ".lora_" not in n]
    if strange or not tensors:
        what = f"has keys such as {strange[0]}" if strange else "is empty"
        raise UserError(f"LoRA {path} {what}: diffusers' keys ({PREFIX}*.lora_A.weight) are read")
    config = json.loads(text) if text else None
    return _bare(tensors), _bare(config) if config else None


def _bare(names: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(PREFIX): value for name, value in names.items()}


def _check_widths(model: DiT, tensors: dict[str, Tensor], path: Path) -> None:
    modules = dict(model.named_modules())
    for name, tensor in tensors.items():
        linear, _, rest = name.partition(".lora_")
        module = modules.get(linear)
        if module is None:
            raise UserError(f"LoRA {path} adapts {linear}, which this model does not have")
        axis, width = (1, module.in_features) if rest[0] == "A" else (0, module.out_features)
        if tensor.ndim != 2 or tensor.shape[axis] != width:
            raise UserError(
                f"LoRA {path} does not fit: {name} is {tuple(tensor.shape)}, {linear} has {width}"
            )


def _check_alike(
    model: DiT,
    here: dict[str, Parameter],
    tensors: dict[str, Tensor],
    config: dict[str, Any] | None,
    path: Path,
) -> None:
    if set(here) != set(tensors):
        other = min(set(here) ^ set(tensors))
        raise UserError(f"LoRA {path} adapts other linears than this model does, such as {other}")
    mine, theirs = _rank(dict(here)), _rank(tensors)
    if mine != theirs:
        raise UserError(f"LoRA {path} has rank {theirs}, the adapters here have rank {mine}")
    alpha = (config or {}).get("lora_alpha", theirs)  # without metadata diffusers takes the rank
    if alpha != model.peft_config[NAME].lora_alpha:
        here_is = model.peft_config[NAME].lora_alpha
        raise UserError(f"LoRA {path} has alpha {alpha:g}, the adapters here have {here_is:g}")


def _rank(tensors: dict[str, Any]) -> int:
    return next(int(x.shape[0]) for name, x in tensors.items() if ".lora_A." in name)
