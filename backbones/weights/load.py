"""DiTs with their weights: random from a seed, from wherever users have them, to a folder.

What diffusers wrote, diffusers reads. Of other checkpoints (the original layout, ComfyUI's files,
GGUF) names are changed by diffusers' own converters, and the config comes from the spec, so that no
hub is asked. Their numbers are those of `from_pretrained`: what diffusers keeps in float32 is kept
here, too, which its `from_single_file` does not do in bfloat16. Quantisation is diffusers' as well:
bitsandbytes while weights are read, GGUF as the file has them. Pickles are never read.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.tools.device import free_memory
from ...core.tools.files import TensorFile, read_json, whole_folder, write_json
from ...core.tools.hub import GIGABYTE, first_line
from ..blocks.base import DiffusersBackbone
from ..specs import DiTSpec
from .check import check_finite, check_numbers, check_tensors, read_headers, skeleton
from .find import CHECKPOINT, DiTWeights, Facts, Release, check_experts, find_dit, weight_files
from .original import Convert, original_converter, original_spelling

D = TypeVar("D", bound=DiffusersBackbone)
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_SCALED = ("scaled_fp8", "scale_weight", "weight_scale", "scale_input")


def load_model(
    cls: type[D],
    spec: DiTSpec,
    seed: int,
    *,
    release: Release,
    initialise: Callable[[D], None] | None,
) -> D:
    """Return the model of a spec in its dtype: its weights where it names some, else random ones.

    Args:
        cls: to build.
        spec: with `config`; its `loras` are the caller's to add.
        seed: of random weights.
        release: how the model is laid out where people get it.
        initialise: changes random weights before they are cast; None: diffusers' stay.

    Returns:
        The model without its `setup`, which is the caller's to set.

    Raises:
        UserError: there is nothing at `spec.weights`, or weights of another class or shape, damaged
            or incomplete ones, too little disk for a download, or an extra that is not installed.
    """
    dtype = getattr(torch, spec.dtype)
    if spec.weights is not None:
        weights = find_dit(spec.weights, release.parts)
        return _pretrained(cls, spec.config, weights, dtype, spec.quantize, release)
    with torch.random.fork_rng(devices=[]):  # the global random state stays as it was
        torch.manual_seed(seed)
        model: D = cls(**spec.config)
    model.eval()
    if initialise is not None:
        initialise(model)
    cast(model, dtype)
    return model


def _pretrained(
    cls: type[D],
    config: Mapping[str, Any],
    weights: DiTWeights,
    dtype: torch.dtype,
    quantize: str,
    release: Release,
) -> D:
    """Return the model of weights, held to the numbers of `config`; other keys are free."""
    check_experts(weights, release)
    if weights.gguf:
        if quantize != "none":
            raise UserError(f"weights {weights.name} are quantised already: set quantize to none")
        return _load_gguf(cls, config, weights, dtype, release.facts)
    quantization = _bitsandbytes_config(quantize, dtype)
    if weights.path.is_dir() and _is_by_diffusers(cls, weights, config, release):
        if quantization is None:
            model = skeleton(cls, config)
            cast(model, dtype)
            _check_memory(weights.name, model)
        return _load_by_diffusers(cls, weights, dtype, quantization)
    if quantization is not None:
        raise UserError(
            f"weights {weights.name}: quantize {quantize} reads diffusers folders alone; of single "
            "files, take a GGUF that is quantised already"
        )
    return _load_tensors(cls, config, weights, dtype, release.facts)


def cast(model: DiffusersBackbone, dtype: torch.dtype) -> None:
    """Set the type of parameters to `dtype`, but to float32 of those that diffusers keeps in it."""
    in_float32 = set(model._keep_in_fp32_modules or ())
    for name, parameter in model.named_parameters():
        is_kept = bool(in_float32 & set(name.split(".")))
        parameter.data = parameter.data.to(torch.float32 if is_kept else dtype)


def _is_by_diffusers(
    cls: type[DiffusersBackbone], weights: DiTWeights, config: Mapping[str, Any], release: Release
) -> bool:
    """Check a folder; whether diffusers wrote it, or it is of the original release.

    Raises:
        UserError: it is neither, or of another class or shape, damaged or incomplete.
    """
    written = read_json(weights.path / "config.json", CHECKPOINT)
    name = written.get("_class_name") if isinstance(written, dict) else None
    files = weight_files(weights)
    if release.original and name == release.original:
        check_numbers(weights.name, release.numbers(written), config)
        return False
    if name != cls.diffusers_class:
        raise UserError(f"weights {weights.name} are of {name}, not of {cls.diffusers_class}")
    parameters = inspect.signature(cls.__init__).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items()}
    check_numbers(weights.name, defaults | written, config)
    if written.get("quantization_config") is None:  # else diffusers reads other tensors
        check_tensors(weights.name, read_headers(weights.name, files), skeleton(cls, config))
    return _index_is_whole(weights)


def _index_is_whole(weights: DiTWeights) -> bool:
    """Return whether the index of shards, where there is one, has all that diffusers reads of it.

    Other programs' have no `metadata`, which diffusers looks up; the tensors are all there.
    """
    indices = weights.path.glob("*.safetensors.index.json")
    return all("metadata" in read_json(path, CHECKPOINT) for path in indices)


def _load_by_diffusers(
    cls: type[D], weights: DiTWeights, dtype: torch.dtype, quantization: Any
) -> D:
    loader: Any = cls  # what diffusers gives is not typed
    try:
        with torch.random.fork_rng(devices=[]):
            model: D = loader.from_pretrained(
                str(weights.path),
                torch_dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                quantization_config=quantization,
            )
    except (OSError, RuntimeError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"weights {weights.name} cannot be read: {first_line(error)}") from error
    check_finite(weights.name, model)
    return model


def _load_tensors(
    cls: type[D],
    config: Mapping[str, Any],
    weights: DiTWeights,
    dtype: torch.dtype,
    facts: Facts | None,
) -> D:
    """Return the model of safetensors files, in diffusers' names or those of the original release.

    Raises:
        UserError: a file is missing, cut short, scaled to fp8, or of another model.
    """
    files, model = weight_files(weights), skeleton(cls, config)
    convert = _checked_converter(
        weights.name, model, read_headers(weights.name, files), config, facts
    )
    cast(model, dtype)
    _check_memory(weights.name, model)
    types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    # one by one, so that memory holds little more than the model
    parts = (convert({key: tensor}) for path in files for key, tensor in _read(path))
    state = {n: _own(x.to(types[n])) for part in parts for n, x in part.items() if n in types}
    model.load_state_dict(state, assign=True)
    check_finite(weights.name, model)
    return model.eval()


def _check_memory(name: str, model: DiffusersBackbone) -> None:
    """Refuse a model that is larger than the memory that is free.

    Raises:
        UserError: with both sizes.
    """
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    free = free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"weights {name} take {needed / GIGABYTE:.1f} GB of memory, and {free / GIGABYTE:.1f} "
            "GB are free here: take a GGUF that is quantised, or a machine with more"
        )


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    file = TensorFile(path)
    for key in file.entries:
        yield key, file.read(key)


def _own(tensor: Tensor) -> Tensor:
    """Return a tensor that shares memory with no other: converters cut fused ones in parts."""
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    return tensor if whole else tensor.contiguous().clone()


def _checked_converter(
    name: str,
    model: DiffusersBackbone,
    shapes: dict[str, Tensor],
    config: Mapping[str, Any],
    facts: Facts | None,
) -> Convert:
    """Return what turns a file's tensors into diffusers', after a check of names and shapes.

    Raises:
        UserError: they are scaled to fp8, or not those of the model.
    """
    scaled = [key for key in shapes if key.endswith(_SCALED)]
    if scaled:
        raise UserError(
            f"weights {name} are scaled to fp8 ({scaled[0]}), which diffusers cannot read; take "
            "the bf16 or fp16 file, or a GGUF"
        )
    twice = [key for key in shapes if _bare(key) != key and _bare(key) in shapes]
    if twice:
        raise UserError(
            f"weights {name} hold a model twice, {_bare(twice[0])} and {twice[0]}: take a file of "
            "one alone"
        )
    convert = _converter(model, shapes)
    try:
        converted = convert(shapes)
    except (RuntimeError, ValueError, LookupError, AttributeError, TypeError):
        converted = {}  # converters trust the names that they know
    _refuse_foreign(name, model, shapes, converted)
    if facts is not None:
        check_numbers(name, facts(converted), config)
    check_tensors(name, converted, model)
    return convert


def _converter(model: DiffusersBackbone, tensors: Mapping[str, Tensor]) -> Convert:
    """Return what turns tensors of a file into diffusers' by name: by whose names they have."""
    names, bare = set(model.state_dict()), {_bare(name) for name in tensors}
    if len(names & bare) > len(names) // 2:
        return lambda tensors: {_bare(name): x for name, x in tensors.items()}
    convert = original_converter(model)
    return lambda tensors: convert({_bare(name): x for name, x in tensors.items()})


def _refuse_foreign(
    name: str,
    model: DiffusersBackbone,
    tensors: Mapping[str, Tensor],
    converted: Mapping[str, Tensor],
) -> None:
    """Refuse tensors of which none is of a block of the model.

    Raises:
        UserError: with one that is there.
    """
    own = set(model.state_dict()) & set(converted)
    blocks = tuple(f"{blocks}." for blocks in model.block_lists) or ("",)
    if any(key.startswith(blocks) for key in own):
        return
    what = f"they hold {min(tensors)}" if tensors else "they hold no tensors"
    if any("lora" in key for key in tensors):
        what += "; a LoRA goes into backbone.loras"
    raise UserError(f"weights {name} are of no {model.diffusers_class}: {what}")


def _bare(name: str) -> str:
    """Return a tensor's name without the prefix that ComfyUI's and others' files put before it."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _load_gguf(
    cls: type[D],
    config: Mapping[str, Any],
    weights: DiTWeights,
    dtype: torch.dtype,
    facts: Facts | None,
) -> D:
    """Return the model of a GGUF file, whose linears stay quantised and compute in `dtype`.

    Raises:
        UserError: gguf is not installed, or the file is damaged or of another model.
    """
    require_package("gguf", "a .gguf file")
    from diffusers import GGUFQuantizationConfig

    loader: Any = cls  # what diffusers gives is not typed
    quantization: Any = GGUFQuantizationConfig(compute_dtype=dtype)
    # Both ends of the model and norms, which diffusers never casts, are dequantised as they are
    # read: the encoder copies the first projection, and few types of layers compute with blocks.
    quantization.modules_to_not_convert = list(loader._skip_layerwise_casting_patterns or ())
    empty = skeleton(cls, config)
    tensors, shapes = _read_gguf(weights, empty)
    _checked_converter(weights.name, empty, shapes, config, facts)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            text = json.dumps({"_class_name": cls.diffusers_class, **config})
            (Path(folder) / "config.json").write_text(text, encoding="utf-8")
            model: D = loader.from_single_file(
                tensors,
                config=folder,
                torch_dtype=dtype,
                quantization_config=quantization,
                local_files_only=True,
            )
    except (OSError, RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"weights {weights.name} cannot be read: {first_line(error)}") from error
    _dequantise_all_but_linears(model, dtype)
    return model


def _read_gguf(
    weights: DiTWeights, model: DiffusersBackbone
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of a GGUF file, quantised, and the shapes that they stand for."""
    from diffusers.models.model_loading_utils import load_gguf_checkpoint
    from diffusers.quantizers.gguf.utils import GGUFParameter

    try:
        checkpoint: dict[str, Any] = load_gguf_checkpoint(str(weights.path))
    except Exception as error:  # its reader trusts the file, and fails as it may
        raise UserError(f"weights {weights.name} cannot be read: {first_line(error)}") from error
    tensors = {original_spelling(model, _bare(name)): x for name, x in checkpoint.items()}
    shapes = {
        name: x.quant_shape if isinstance(x, GGUFParameter) else x.shape
        for name, x in tensors.items()
    }
    return tensors, {n: torch.empty(tuple(s), device="meta") for n, s in shapes.items()}


def _dequantise_all_but_linears(model: nn.Module, dtype: torch.dtype) -> None:
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


def _bitsandbytes_config(quantize: str, dtype: torch.dtype) -> Any:
    """Return diffusers' config for `nf4` or `int8`, or None for `none`.

    Raises:
        UserError: bitsandbytes is not installed, or there is no GPU.
    """
    if quantize == "none":
        return None
    require_package("bitsandbytes", f"backbone.quantize {quantize}")
    if not torch.cuda.is_available():
        raise UserError(f"backbone.quantize {quantize} needs a GPU, and there is none")
    from diffusers import BitsAndBytesConfig

    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def require_package(package: str, what: str) -> None:
    """Refuse what an extra is missing for.

    Raises:
        UserError: `package` cannot be imported; with the command that installs it.
    """
    if find_spec(package) is None:
        raise UserError(f'{what} needs {package}: pip install "longtake[{package}]"')


def save(model: DiffusersBackbone, folder: Path) -> None:
    """Write config.json and safetensors as diffusers does, under the name of its own class."""
    if model.adapters():
        raise ValueError("a model with adapters has no plain weights: save the base before adding")
    with whole_folder(folder) as part:
        model.save_pretrained(part, safe_serialization=True)
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)  # where it was loaded from is no one's business
        write_json(part / "config.json", config | {"_class_name": model.diffusers_class})
