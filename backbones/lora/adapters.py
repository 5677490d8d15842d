"""LoRA on a diffusers model, through peft: ours, which trains, and others, frozen beside it.

Ours is saved in files that diffusers reads. The others (`DiTSpec.loras`: few-step distillation,
styles) are adapters of their own, each with its scale, that act together with ours; none of them is
trained or written into files of ours.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module, Parameter, init

from ...core.errors import UserError
from ...core.interfaces.spec import LoRA
from ...core.tools.files import whole_file
from ...core.tools.hub import expand_path
from ..blocks.base import Changed, DiffusersBackbone
from .folded import fold
from .layouts import DIFFUSERS
from .read import Lora, parameters, read_lora

NAME = "default"  # of ours in peft; those beside it have other names
_BLOCK = re.compile(r"\w*blocks\.\d+\.")


def add(model: DiffusersBackbone, lora: LoRA) -> None:
    """Freeze the model and add adapters: A drawn from the seed, B zero.

    Raises:
        ValueError: it has adapters already.
    """
    if adapters(model):
        raise ValueError("this model has adapters already")
    names = _linears(model, [end for target in lora.targets for end in model.linears[target]])
    _attach(model, names, lora.rank, lora.alpha, lora.dtype)
    generator = torch.Generator().manual_seed(lora.seed)  # on the CPU: alike on every device
    for name, weight in adapters(model).items():
        if ".lora_A." in name:
            fresh = init.kaiming_uniform_(
                torch.empty(weight.shape), a=math.sqrt(5), generator=generator
            )
            weight.data.copy_(fresh)


def _linears(model: DiffusersBackbone, ends: Iterable[str]) -> list[str]:
    """Return the names of the blocks' modules that end so; those outside of blocks never count."""
    dotted = tuple(f".{end}" for end in ends)
    return [n for n, _ in model.named_modules() if _BLOCK.match(n) and f".{n}".endswith(dotted)]


def _attach(
    model: DiffusersBackbone, names: list[str], rank: int, alpha: float, dtype: str
) -> None:
    """Freeze the model and add adapters of a type, trainable; float32 is never below the base's."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)
    model.requires_grad_(False)
    _inject(model, config, NAME)
    for weight in adapters(model).values():
        wide = torch.promote_types(weight.dtype, torch.float32)
        weight.data = weight.data.to(wide if dtype == "float32" else torch.bfloat16)


def _inject(model: DiffusersBackbone, config: LoraConfig, name: str) -> None:
    """Add a LoRA to those of the model and let all act, ours last; ours alone can train."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft draws
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        model.add_adapter(config, adapter_name=name)
    model.set_adapter(sorted(model.peft_config, key=lambda other: other == NAME))
    fold(model)
    for key, weight in model.named_parameters():
        if ".lora_A." in key or ".lora_B." in key:
            weight.requires_grad_(f".{NAME}." in key)


def adapters(model: DiffusersBackbone) -> dict[str, Parameter]:
    """Return our LoRA's parameters by the names that files use, without the prefix."""
    return {
        name.replace(f".{NAME}.", "."): weight
        for name, weight in model.named_parameters()
        if f".lora_A.{NAME}." in name or f".lora_B.{NAME}." in name
    }


def save(model: DiffusersBackbone, path: Path, besides: Mapping[str, Tensor]) -> None:
    """Write the adapters as diffusers' pipelines do: keys, and metadata that keeps rank and alpha.

    Args:
        model: with adapters.
        path: of the file.
        besides: more tensors for the file, by whole keys, which diffusers does not read.

    Raises:
        ValueError: there is nothing to save.
    """
    tensors = {DIFFUSERS + name: weight for name, weight in adapters(model).items()} | {**besides}
    if not tensors:
        raise ValueError("this model has no adapters to save")
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    texts = {"format": "pt"}
    if len(tensors) > len(besides):
        config = model.peft_config[NAME]
        linears = {name.partition(".lora_")[0] for name in adapters(model)}
        texts |= diffusers_metadata(int(config.r), float(config.lora_alpha), linears)
    with whole_file(path) as part:
        save_file(flat, part, metadata=texts)


def diffusers_metadata(rank: int, alpha: float, linears: Iterable[str]) -> dict[str, str]:
    """Return the metadata by which diffusers keeps rank and alpha of a LoRA on these linears.

    Only what is needed: peft refuses a config with a field that its version does not know.
    """
    config = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(linears)}
    text = json.dumps({DIFFUSERS + key: value for key, value in config.items()}, sort_keys=True)
    return {LORA_ADAPTER_METADATA_KEY: text}


def load(model: DiffusersBackbone, path: Path) -> None:
    """Read a LoRA file of any layout into the adapters here, or as new ones on a frozen base.

    Raises:
        UserError: no such file, other keys, another width, several ranks or alphas, biases, or
            another rank or alpha than here.
    """
    lora = read_lora(model, path)
    rank, alpha = one_scale(lora, path)
    if adapters(model):
        _check_alike(model, lora, path)
    else:
        _attach(model, list(lora.pairs), rank, alpha, "float32")
    with torch.no_grad():
        for name, weight in adapters(model).items():
            linear, _, end = name.partition(".lora_")
            weight.copy_(lora.pairs[linear].down if end[0] == "A" else lora.pairs[linear].up)


def one_scale(lora: Lora, path: Path) -> tuple[int, float]:
    """Return the rank and alpha that all linears of a LoRA share, which one that trains must.

    Raises:
        UserError: they do not, or it changes biases or other parameters.
    """
    ranks, alphas = {pair.rank for pair in lora.pairs.values()}, set(lora.alphas.values())
    what = f"ranks {_first(ranks)}" if len(ranks) > 1 else f"alphas {_first(alphas)}"
    if lora.biases:
        what = f"biases, such as of {min(lora.biases)}"
    if lora.diffs:
        what = f"changes of other parameters, such as of {min(lora.diffs)}"
    if lora.biases or lora.diffs or len(ranks) > 1 or len(alphas) > 1:
        raise UserError(
            f"LoRA {path} has {what}: it cannot train on; to keep it frozen beside, name it in "
            "backbone.loras"
        )
    return ranks.pop(), alphas.pop()


def _first(numbers: set[int] | set[float]) -> str:
    return ", ".join(f"{number:g}" for number in sorted(numbers)[:3])


def _check_alike(model: DiffusersBackbone, lora: Lora, path: Path) -> None:
    """Refuse a LoRA that adapters which the model has already cannot take: UserError."""
    linears = {name.partition(".lora_")[0] for name in adapters(model)}
    if linears != set(lora.pairs):
        other = min(linears ^ set(lora.pairs))
        raise UserError(f"LoRA {path} adapts other linears than this model does, such as {other}")
    rank, alpha = one_scale(lora, path)
    config = model.peft_config[NAME]
    if rank != config.r:
        raise UserError(f"LoRA {path} has rank {rank}, the adapters here have rank {config.r}")
    if alpha != config.lora_alpha:
        here = f"the adapters here have {config.lora_alpha:g}"
        raise UserError(f"LoRA {path} has alpha {alpha:g}, {here}")


def add_frozen(model: DiffusersBackbone, loras: Sequence[str]) -> None:
    """Add LoRA files to a model, frozen, in any layout that `read_lora` knows.

    Ranks, alphas and biases may differ by linear. What a file adds to other parameters (`.diff`)
    is added to them, times the scale, as ComfyUI does; `removed` takes it off again.

    Args:
        model: with or without adapters of ours.
        loras: `file` or `file@0.8`: the scale of what it adds, 1 where none is given.

    Raises:
        UserError: a file is missing, of no known layout or of another model, or a scale is no
            number.
    """
    for text in loras:
        path, scale = parse_scaled(text)
        lora = read_lora(model, path)
        if lora.pairs:
            _add_scaled(model, lora, scale)
        _add_diffs(model, lora.diffs, scale, path)


def parse_scaled(text: str) -> tuple[Path, float]:
    """Return the file and the scale that `file@0.8` names.

    Raises:
        UserError: what stands behind the last `@` is no finite number, and no such file exists.
    """
    name, at, tail = text.rpartition("@")
    if not at or expand_path(text).exists():
        return expand_path(text), 1.0
    try:
        scale = float(tail)
    except ValueError:
        scale = math.nan
    if not name or not math.isfinite(scale):
        raise UserError(f"backbone.loras: {text!r}: write file or file@0.8, {tail!r} is no scale")
    return expand_path(name), scale


@torch.no_grad()
def _add_scaled(model: DiffusersBackbone, lora: Lora, scale: float) -> None:
    others = model.peft_config if model._hf_peft_config_loaded else {}
    name = f"extra_{sum(other != NAME for other in others)}"
    _inject(model, _config_by_linear(lora), name)
    for linear, pair in lora.pairs.items():
        layer = model.get_submodule(linear)
        assert isinstance(layer, LoraLayer)
        layer.lora_A[name].weight.copy_(pair.down)
        # peft scales B's bias as well, but alpha is not meant for it: alpha goes into B
        layer.lora_B[name].weight.copy_(pair.up.float() * (lora.alphas[linear] / pair.rank))
        if layer.lora_B[name].bias is not None:
            layer.lora_B[name].bias.copy_(lora.biases.get(linear, torch.zeros(())))
        layer.set_scale(name, scale)


@torch.no_grad()
def _add_diffs(
    model: DiffusersBackbone, diffs: Mapping[str, Tensor], scale: float, path: Path
) -> None:
    """Add changes times a scale to parameters, summed in float32 over all LoRAs.

    Raises:
        UserError: a parameter is quantised.
    """
    own, changed = parameters(model), dict(model.changed)
    for name, diff in diffs.items():
        weight = own[name]
        if not weight.is_floating_point():
            raise UserError(
                f"LoRA {path} changes {name}, which is quantised: set backbone.quantize to none"
            )
        original = weight.detach().cpu().clone()
        before = changed.get(name, Changed(original, original.float()))
        wide = before.wide + scale * diff.float()
        changed[name] = before._replace(wide=wide)
        weight.copy_(wide)
    model.changed = changed


@contextmanager
def removed(model: DiffusersBackbone) -> Iterator[None]:
    """Remove frozen LoRAs within the `with` block: files of the model's own weights hold none.

    A parameter that was changed and trained since keeps what it learned.
    """
    layers = [(n, x) for n, x in model.named_modules() if isinstance(x, LoraLayer)]
    own = parameters(model)
    changed = {name: own[name].detach().clone() for name in model.changed}
    try:
        with torch.no_grad():
            for name, now in changed.items():
                original, wide = model.changed[name]
                same = torch.equal(now.cpu(), wide.to(now.dtype))
                own[name].copy_(original if same else now.cpu().float() - wide + original.float())
        for name, layer in layers:
            _set_module(model, name, layer.get_base_layer())
        yield
    finally:
        for name, layer in layers:
            _set_module(model, name, layer)
        with torch.no_grad():
            for name, now in changed.items():
                own[name].copy_(now)


def _set_module(model: DiffusersBackbone, name: str, module: Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _config_by_linear(lora: Lora) -> LoraConfig:
    """Return peft's config of a LoRA whose linears have their own ranks; alphas equal the ranks."""
    ranks = {linear: pair.rank for linear, pair in lora.pairs.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    # `^`: peft would take the end of another linear's name for it
    others = {f"^{linear}": other for linear, other in ranks.items() if other != rank}
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=list(lora.pairs),
        lora_bias=bool(lora.biases),
    )
