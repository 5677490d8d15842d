"""Weights of a diffusers model: random from a seed, from wherever users have them, to a folder."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.tools.files import read_json, whole_folder, write_json
from ...core.tools.hub import first_line
from ..blocks.base import DiffusersBackbone
from ..specs import DiTSpec
from .check import check_numbers, check_tensors, read_headers, skeleton
from .find import CHECKPOINT, Facts, Release, Source, check_experts, find_source, weight_files

# ⟦backbones/weights/quantize.py⟧ Quantised weights, through diffusers: bitsandbytes on the way in, GGUF as the file has them.


def bitsandbytes_config(quantize: str, dtype: torch.dtype) -> Any:
    """Return diffusers' config for `nf4` or `int8`, or None for `none`.

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
    """Return diffusers' config for a GGUF file.

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


# ⟦backbones/weights/single_file.py⟧ Checkpoints that diffusers did not write: the original layout, ComfyUI's files, GGUF. Names are changed by diffusers' own converters; its config comes from the spec, so that no hub is asked. The numbers are those of `from_pretrained`: what diffusers keeps in float32 is kept here, too, which its `from_single_file` does not do in bfloat16.

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
    """Return the model of safetensors files, in diffusers' names or those of the original release.

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
    """Return the model of a GGUF file, whose linears stay quantised.

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
    model: DiffusersBackbone,
    shapes: dict[str, Tensor],
    config: Mapping[str, Any],
    facts: Facts | None,
) -> Convert:
    """Return what turns a file's tensors into diffusers', after a look at their names and shapes.

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


def cast(model: DiffusersBackbone, dtype: torch.dtype) -> None:
    """Give parameters the type `dtype`, but float32 to those that diffusers keeps in it."""
    kept = set(model._keep_in_fp32_modules or ())
    for name, parameter in model.named_parameters():
        wanted = torch.float32 if kept & set(name.split(".")) else dtype
        parameter.data = parameter.data.to(wanted)


@contextmanager
def _config_folder(cls: type[DiffusersBackbone], config: Mapping[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps({"_class_name": cls.diffusers_class, **config})
        (Path(folder) / "config.json").write_text(text, encoding="utf-8")
        yield Path(folder)


def _converter(model: DiffusersBackbone, found: Mapping[str, Tensor]) -> Convert:
    """Return what turns tensors of a file into diffusers' by name: by whose names they have."""
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
    """Return the tensors of a GGUF file, quantised, and the shapes that they stand for."""
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
    """Return a tensor that shares memory with no other: converters cut fused ones in parts."""
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    return tensor if whole else tensor.contiguous().clone()


D = TypeVar("D", bound=DiffusersBackbone)
DIFFUSERS = Release()


def load_model(
    cls: type[D],
    spec: DiTSpec,
    seed: int,
    *,
    release: Release = DIFFUSERS,
    begin: Callable[[D], None] | None = None,
) -> D:
    """Return the model of a spec in its dtype: its weights where it names some, else random ones.

    Args:
        cls: to build.
        spec: with `config`; its `loras` are the caller's to add.
        seed: of random weights.
        release: how the model is laid out where people get it.
        begin: changes random weights before they are cast.

    Returns:
        The model without its `setup`, which is the caller's to set.

    Raises:
        UserError: as `pretrained_model`.
    """
    dtype = getattr(torch, spec.dtype)
    if spec.weights is None:
        model = random_model(cls, spec.config, seed)
        if begin is not None:
            begin(model)
        cast(model, dtype)
    else:
        model = pretrained_model(
            cls, spec.config, spec.weights, dtype, quantize=spec.quantize, release=release
        )
    return model


def random_model(cls: type[D], config: Mapping[str, Any], seed: int) -> D:
    """Return a model with diffusers' own initialisation; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: D = cls(**config)
    model.eval()
    return model


def pretrained_model(
    cls: type[D],
    config: Mapping[str, Any],
    weights: str | Path,
    dtype: torch.dtype,
    *,
    quantize: str = "none",
    release: Release = DIFFUSERS,
) -> D:
    """Return the model that `weights` names; pickles are never read.

    Args:
        cls: to build.
        config: diffusers' config that the weights must have; other keys are free.
        weights: a diffusers pipeline or model folder, one of the original release, a single
            .safetensors (diffusers', the original's or ComfyUI's names) or .gguf file, a hub id,
            a file on the hub, or weights that ship (`sources.find_source`).
        dtype: of the parameters but those that diffusers keeps in float32.
        quantize: none, nf4 or int8.
        release: how the model is laid out where people get it.

    Raises:
        UserError: there is nothing, or weights of another class or shape, damaged or incomplete
            ones, too little disk for a download, or an extra that is not installed.
    """
    source = find_source(str(weights), release.parts)
    check_experts(source, release)
    if source.gguf:
        if quantize != "none":
            raise UserError(f"weights {source.name} are quantised already: set quantize to none")
        found = load_gguf(cls, config, source, gguf_config(dtype, _plain(cls)), release.facts)
        settle_gguf(found, dtype)
        return found
    quantization = bitsandbytes_config(quantize, dtype)
    if source.path.is_dir() and _by_diffusers(cls, source, config, release):
        return _from_folder(cls, source, dtype, quantization)
    if quantization is not None:
        raise UserError(
            f"weights {source.name}: quantize {quantize} reads diffusers folders alone; of single "
            "files, take a GGUF that is quantised already"
        )
    return load_tensors(cls, config, source, dtype, release.facts)


def _plain(cls: Any) -> list[str]:
    """Return the modules that diffusers never casts: both ends of the model, and norms."""
    return list(cls._skip_layerwise_casting_patterns or ())


def _by_diffusers(
    cls: type[DiffusersBackbone], source: Source, config: Mapping[str, Any], release: Release
) -> bool:
    """Check a folder; whether diffusers wrote it, or it is of the original release.

    Raises:
        UserError: it is neither, or of another class or shape, damaged or incomplete.
    """
    found = read_json(source.path / "config.json", CHECKPOINT)
    name = found.get("_class_name") if isinstance(found, dict) else None
    files = weight_files(source)
    if release.original and name == release.original:
        return False
    if name != cls.diffusers_class:
        raise UserError(f"weights {source.name} are of {name}, not of {cls.diffusers_class}")
    check_numbers(source.name, _defaults(cls) | found, config)
    if found.get("quantization_config") is None:  # else diffusers reads other tensors
        check_tensors(source.name, read_headers(source.name, files), skeleton(cls, config))
    return True


def _defaults(cls: type[DiffusersBackbone]) -> dict[str, Any]:
    parameters = inspect.signature(cls.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _from_folder(cls: type[D], source: Source, dtype: torch.dtype, quantization: Any) -> D:
    loader: Any = cls  # what diffusers gives is not typed
    try:
        with torch.random.fork_rng(devices=[]):
            model: D = loader.from_pretrained(
                str(source.path),
                torch_dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                quantization_config=quantization,
            )
    except (OSError, RuntimeError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"weights {source.name} cannot be read: {first_line(error)}") from error
    return model


def save(model: DiffusersBackbone, folder: Path) -> None:
    """Write config.json and safetensors as diffusers does, under the name of its own class."""
    if model.adapters():
        raise ValueError("a model with adapters has no plain weights: save the base before adding")
    with whole_folder(folder) as part:
        model.save_pretrained(part, safe_serialization=True)
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)  # where it was loaded from is no one's business
        write_json(part / "config.json", config | {"_class_name": model.diffusers_class})
