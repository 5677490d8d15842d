"""Checkpoints that diffusers did not write: the original layout, ComfyUI's files, GGUF.

Names are changed by diffusers' own converters; its config comes from the spec, so that no hub is
asked. The numbers are those of `from_pretrained`: what diffusers keeps in float32 is kept here,
too, which its `from_single_file` does not do in bfloat16.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors import safe_open
from torch import Tensor

from ...core.errors import UserError
from .headers import check_tensors, read_headers, skeleton
from .hub import first_line
from .looks import check_numbers
from .sources import Facts, Source, weight_files

if TYPE_CHECKING:
    from ..dit.model import DiT

D = TypeVar("D", bound="DiT")
Convert = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_SCALED = ("scaled_fp8", "scale_weight", "weight_scale", "scale_input")


def load_tensors(
    cls: type[D],
    config: Mapping[str, Any],
    source: Source,
    dtype: torch.dtype,
    facts: Facts | None = None,
) -> D:
    """Give the model of safetensors files, in diffusers' names or those of the original release.

    Args:
        cls: to build.
        config: diffusers' config of it.
        source: a file, or a folder of shards.
        dtype: of the parameters but those that diffusers keeps in float32.
        facts: of the model's `Release`.

    Raises:
        UserError: a file is missing, cut short, scaled to fp8, or of another model.
    """
    files, model = weight_files(source), skeleton(cls, config)
    convert = _checked(source.name, model, read_headers(source.name, files), config, facts)
    cast(model, dtype)
    types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    # one by one, so that memory holds little more than the model
    parts = (convert({key: tensor}) for path in files for key, tensor in _read(path))
    state = {n: _alone(x.to(types[n])) for part in parts for n, x in part.items() if n in types}
    model.load_state_dict(state, assign=True)
    return model.eval()


def load_gguf(
    cls: type[D],
    config: Mapping[str, Any],
    source: Source,
    quantization: Any,
    facts: Facts | None = None,
) -> D:
    """Give the model of a GGUF file, whose linears stay quantised.

    Args:
        cls: to build.
        config: diffusers' config of it.
        source: the file.
        quantization: diffusers' config of the quantisation.
        facts: of the model's `Release`.

    Raises:
        UserError: the file is damaged or of another model.
    """
    tensors, shapes = _read_gguf(source)
    _checked(source.name, skeleton(cls, config), shapes, config, facts)
    loader: Any = cls  # what diffusers gives is not typed
    try:
        with _config_folder(cls, config) as folder, torch.random.fork_rng(devices=[]):
            model: D = loader.from_single_file(
                tensors,
                config=str(folder),
                torch_dtype=quantization.compute_dtype,
                quantization_config=quantization,
                local_files_only=True,
            )
    except (OSError, RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"weights {source.name} cannot be read: {first_line(error)}") from error
    return model


def _checked(
    name: str,
    model: DiT,
    shapes: dict[str, Tensor],
    config: Mapping[str, Any],
    facts: Facts | None,
) -> Convert:
    """Give what turns a file's tensors into diffusers', after a look at their names and shapes.

    Raises:
        UserError: they are not those of the model.
    """
    scaled = [key for key in shapes if key.endswith(_SCALED)]
    if scaled:
        raise UserError(
            f"weights {name} are scaled to fp8 ({scaled[0]}), which diffusers cannot read; take "
            "the bf16 or fp16 file, or a GGUF"
        )
    convert = _converter(model, shapes)
    found = convert(shapes)
    if facts is not None:
        check_numbers(name, facts(found), config)
    check_tensors(name, found, model)
    return convert


def cast(model: DiT, dtype: torch.dtype) -> None:
    """Give parameters the type `dtype`, but float32 to those that diffusers keeps in it."""
    kept = set(model._keep_in_fp32_modules or ())
    for name, parameter in model.named_parameters():
        wanted = torch.float32 if kept & set(name.split(".")) else dtype
        parameter.data = parameter.data.to(wanted)


@contextmanager
def _config_folder(cls: type[DiT], config: Mapping[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps({"_class_name": cls.diffusers_class, **config})
        (Path(folder) / "config.json").write_text(text, encoding="utf-8")
        yield Path(folder)


def _converter(model: DiT, found: Mapping[str, Tensor]) -> Convert:
    """Give what turns tensors of a file into diffusers' by name: by whose names they have."""
    wanted, bare = set(model.state_dict()), {_bare(name) for name in found}
    if len(wanted & bare) > len(wanted) // 2:
        return lambda tensors: {_bare(name): x for name, x in tensors.items()}
    convert = SINGLE_FILE_LOADABLE_CLASSES[model.diffusers_class]["checkpoint_mapping_fn"]
    config = dict(model.config)
    return lambda tensors: dict(
        convert(checkpoint={_bare(name): x for name, x in tensors.items()}, config=config)
    )


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _read_gguf(source: Source) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Give the tensors of a GGUF file, quantised, and the shapes that they stand for."""
    from diffusers.models.model_loading_utils import load_gguf_checkpoint
    from diffusers.quantizers.gguf.utils import GGUFParameter

    try:
        found: dict[str, Any] = load_gguf_checkpoint(str(source.path))
    except Exception as error:  # its reader trusts the file, and fails as it may
        raise UserError(f"weights {source.name} cannot be read: {first_line(error)}") from error
    tensors = {_bare(name): x for name, x in found.items()}
    shapes = {
        name: x.quant_shape if isinstance(x, GGUFParameter) else x.shape
        for name, x in tensors.items()
    }
    return tensors, {n: torch.empty(tuple(s), device="meta") for n, s in shapes.items()}


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            yield key, file.get_tensor(key)


def _alone(tensor: Tensor) -> Tensor:
    """Give a tensor that shares memory with no other: converters cut fused ones in parts."""
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    return tensor if whole else tensor.contiguous().clone()
