"""Checkpoints of a run: safetensors and JSON for users, and a state that only resuming reads.

RUN/spec.json             the experiment, versions, the store, and what changed on resume
RUN/metrics.jsonl, pace.jsonl
RUN/checkpoint-<step>/memory.safetensors
                      backbone/ (a trained DiT) or lora.safetensors
                      training_state/
    optimizer.pt          state of the optimizer, read with `weights_only`
    raw.safetensors       under `train.ema`: the weights as they train
    average.safetensors   under `train.ema`: their average in fp32
    state.json            the step, the precision, and what logs go on from

Under `train.ema` the weights outside training_state/ are the averaged ones.
"""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import config
from ..errors import UserError
from ..experiment import Experiment
from ..interfaces.compressor import MemoryEncoder
from ..model import Model, build_model
from ..registry import registry
from ..tools.files import (
    disk_errors,
    is_tensors,
    open_tensors,
    read_header,
    read_object,
    remove_folder,
    write_json,
    write_tensors,
)
from ..tools.hub import expand_path
from .distributed import shard_optimizer_state
from .ema import EMA, copy_into

PREFIX = "memory."
ENHANCER = "memory.enhancer"  # begins keys of the backbone: what reads features of a memory
STATE_FOLDER = "training_state"
PARTS = ("high", "low", "memory")  # files of an export that is more than one


def checkpoints(run: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first."""
    return sorted(filter(is_checkpoint, run.glob("checkpoint-*")), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the number of steps that a checkpoint has trained."""
    return int(checkpoint.name.rpartition("-")[2])


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder has the name of a whole checkpoint of a run."""
    return re.fullmatch(r"checkpoint-\d+", folder.name) is not None


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; none is ever seen half removed."""
    for old in checkpoints(run)[:-keep]:
        remove_folder(old)


def find_checkpoint(run: Path, text: str) -> Path:
    """Return the checkpoint of a run that users name: by its step, its name or its folder.

    Raises:
        UserError: the run has no such checkpoint.
    """
    for place in (Path(text), run / text, run / f"checkpoint-{text}"):
        if place.is_dir() and place.resolve().parent == run.resolve():
            if place.resolve() in (one.resolve() for one in checkpoints(run)):
                return run / place.resolve().name
    steps = ", ".join(str(step_of(one)) for one in checkpoints(run)) or "none"
    raise UserError(
        f"--resume {text}: no checkpoint of {run}; latest, or one of the steps that it has "
        f"({steps}); to begin with the weights of another run: --start"
    )


def is_whole(checkpoint: Path) -> bool:
    """Return whether all files of a checkpoint can be opened; reads those of the optimizer whole.

    A file that is missing is not seen.
    """
    try:
        read_state(checkpoint)
        with zipfile.ZipFile(checkpoint / STATE_FOLDER / "optimizer.pt") as optimizer:
            optimizer_whole = optimizer.testzip() is None
        return optimizer_whole and all(map(is_tensors, checkpoint.rglob("*.safetensors")))
    except (UserError, OSError, zipfile.BadZipFile):
        return False


@contextmanager
def older_offered(checkpoint: Path) -> Iterator[None]:
    """Where reading a damaged checkpoint fails, name the newest whole one of its run before it.

    Raises:
        UserError: in place of one that was raised within.
    """
    try:
        yield
    except UserError as error:
        if not is_checkpoint(checkpoint):
            raise
        older = [x for x in checkpoints(checkpoint.parent) if step_of(x) < step_of(checkpoint)]
        found = next((x for x in reversed(older) if is_whole(x)), None)
        if found is None or (is_whole(checkpoint) and _files(checkpoint) == _files(found)):
            raise
        raise UserError(
            f"{error}; the checkpoint before it is whole: use {found} (to train on from there: "
            f"--resume {step_of(found)})"
        ) from error


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def set_aside(run: Path, checkpoint: Path) -> list[Path]:
    """Rename the checkpoints of a run that are newer than the one it goes on from; return them.

    They become `checkpoint-<step>.aside`, which nothing reads; one that is there is replaced.

    Raises:
        UserError: the disk refuses.
    """
    newer = [one for one in checkpoints(run) if step_of(one) > step_of(checkpoint)]
    aside = [one.with_name(f"{one.name}.aside") for one in newer]
    for path, place in zip(newer, aside, strict=True):
        if place.exists():
            remove_folder(place)
        with disk_errors(place):
            os.replace(path, place)
    return aside


def read_run(place: Path) -> tuple[Experiment, Path]:
    """Return the experiment and the newest checkpoint folder of a run.

    `place` may also be one checkpoint, a folder of shipped weights with its own spec.json, or a
    bundle that `longtake export` wrote, which says in its header what it is; it stands in for the
    folder. Relative paths of weights in the spec that are not here are looked for beside it, in its
    folder and those above it: a project that was moved as a whole stays together.

    Raises:
        UserError: there is no run, or it has no checkpoint yet.
    """
    if place.is_file():
        return _read_bundle(place), place
    if not place.is_dir():
        raise UserError(f"{place}: no such run")
    shipped = any((place / part).exists() for part in ("memory.safetensors", "backbone"))
    spec = place if (place / "spec.json").exists() or not shipped else place.parent
    data = read_object(spec / "spec.json", "run (make one with `longtake pretrain`)", "experiment")
    try:
        experiment = config.from_json(beside_spec(data["experiment"], spec), Experiment)
    except config.SpecError as error:
        raise UserError(f"{spec / 'spec.json'}: {error}") from error
    if shipped:
        return experiment, place
    if not checkpoints(place):
        raise UserError(f"{place} has no checkpoint yet: let `longtake pretrain` reach one")
    return experiment, checkpoints(place)[-1]


def _read_bundle(path: Path) -> Experiment:
    """Return the experiment in the header of an exported file: UserError where it has none."""
    with open_tensors(memory_file(path)) as file:
        header = read_header(file, path)
    data = header.get("experiment") if isinstance(header, dict) else None
    if data is None:
        raise UserError(f"{path} is no run, and no file that `longtake export` wrote")
    try:
        experiment: Experiment = config.from_json(beside_spec(data, path.parent), Experiment)
    except config.SpecError as error:
        raise UserError(f"{path}: {error}") from error
    return experiment


def lora_file(folder: Path) -> Path:
    """Return the file that the adapters of a checkpoint, or of a bundle, are in.

    Of a bundle of two experts it is that of the high-noise one, with the other beside it.
    """
    if not folder.is_file():
        return folder / "lora.safetensors"
    whole = _whole_name(folder)
    high, low = (_part_of(whole, name) for name in ("high", "low"))
    if high.is_file() and low.is_file():
        return high
    return whole if whole.is_file() else folder


def memory_file(folder: Path) -> Path:
    """Return the file that the encoder of a checkpoint, or of a bundle of some files, is in.

    Raises:
        UserError: a bundle cannot be read.
    """
    if not folder.is_file():
        return folder / "memory.safetensors"
    with open_tensors(folder) as file:
        alone = any(name.startswith(PREFIX) for name in file.keys())
    beside = _part_of(_whole_name(folder), "memory")
    return folder if alone or not beside.is_file() else beside


def _whole_name(path: Path) -> Path:
    """Return the name that was exported to, of any file of a bundle: x of `x.memory`."""
    stem, dot, part = path.stem.rpartition(".")
    return path.with_name(f"{stem}{path.suffix}") if dot and part in PARTS else path


def _part_of(whole: Path, part: str) -> Path:
    return whole.with_suffix(f".{part}{whole.suffix}")


def beside_spec(data: Any, folder: Path) -> Any:
    """Return a spec as JSON whose relative paths of weights are found from its folder, too.

    A path that is there from the working directory stays as it is, and so do names of weights that
    ship, and what is nowhere, such as a name on the hub. What is found elsewhere is said.

    Args:
        data: the spec, or a part of it.
        folder: of its spec.json.
    """
    if isinstance(data, list):
        return [beside_spec(value, folder) for value in data]
    if not isinstance(data, dict):
        return data
    found = {key: beside_spec(value, folder) for key, value in data.items()}
    if isinstance(weights := data.get("weights"), str):
        found["weights"] = _paths_beside(weights, folder)
    if isinstance(loras := data.get("loras"), list):
        found["loras"] = [_paths_beside(x, folder) if isinstance(x, str) else x for x in loras]
    return found


def _paths_beside(text: str, folder: Path) -> str:
    """Return a text that names paths, such as `high.gguf,low.gguf` or `high:a.safetensors@0.5`."""
    whole = _path_beside(text, folder)
    if whole != text:
        return whole
    parts = [
        re.fullmatch(r"(\s*(?:\w{2,}:)?)(.+?)((?:@[\d.eE+-]+)?\s*)", x) for x in text.split(",")
    ]
    return ",".join(
        f"{part[1]}{_path_beside(part[2], folder)}{part[3]}" if part else ""
        for part in parts
    )  # fmt: skip


def _path_beside(text: str, folder: Path) -> str:
    path = Path(text)
    if text in registry().weights:  # whose folder may stand beside the run's
        return text
    try:
        if not text or text.startswith("~") or path.is_absolute() or path.exists():
            return text
        here = folder.absolute()
        found = next((x for place in (here, *here.parents) if (x := place / path).exists()), None)
    except OSError:  # a name that is too long, a folder that may not be entered
        return text
    if found is None:
        return text
    logging.getLogger(__name__).warning("weights %s are not here: %s are used", text, found)
    return str(found)


def load_run(place: Path) -> Model:
    """Load the newest model of a run, for reading."""
    experiment, folder = read_run(place)
    with older_offered(folder):
        return load_model(folder, experiment).eval()


def load_model(folder: Path, experiment: Experiment) -> Model:
    """Load the model of a checkpoint folder, or of a bundle.

    Raises:
        UserError: something is missing, damaged, or of another model.
    """
    weights = folder / "backbone"
    if weights.is_dir():
        experiment = with_weights(experiment, weights)
    elif experiment.train.trains == "all":
        raise UserError(f"{folder} has no backbone/, but its experiment trains all of the DiT")
    model = build_model(experiment, adapters=True)
    lora = lora_file(folder)
    if model.backbone.adapters() and weights.is_dir() and not lora.exists():
        raise UserError(
            f"{folder} holds a DiT trained whole, without LoRA: to train LoRA on it, leave it out "
            f"and --set backbone.weights={weights}"
        )
    if model.backbone.adapters():
        model.backbone.load_adapters(lora)
    if experiment.remembers:
        fit, path = model.backbone.fit(), memory_file(folder)
        load_encoder(path, model.encoder, width=fit.geometry.width, digest=fit.digest)
    return model


def load_parts(folder: Path, experiment: Experiment, parts: str) -> Model:
    """Return the model of an experiment with some of the weights of a checkpoint, the rest fresh.

    A DiT that was trained whole is no adapter: where the experiment trains all of the DiT it goes
    on from that one.

    Args:
        folder: the checkpoint, of any stage, or a bundle.
        experiment: what is to train.
        parts: `encoder`, `adapters`, `both` or `none`.

    Raises:
        UserError: it has not got them, or they do not fit; or LoRA is to train on another DiT than
            the one that was trained whole.
    """
    weights, train = folder / "backbone", experiment.train
    if weights.is_dir() and train.trains == "all":
        experiment = with_weights(experiment, weights)
    elif weights.is_dir() and not _is_same(config.to_json(experiment.backbone), weights):
        raise UserError(
            f"{folder} holds a DiT trained whole, to which its encoder belongs: --set "
            f"backbone.weights={weights}"
        )
    model = build_model(experiment, adapters=True)
    if parts in ("encoder", "both"):
        fit, path = model.backbone.fit(), memory_file(folder)
        load_encoder(path, model.encoder, width=fit.geometry.width, digest=fit.digest)
    if parts in ("adapters", "both"):
        if not model.backbone.adapters():
            raise UserError(f"finetune.start={parts}, but train.trains={train.trains} has no LoRA")
        lora = lora_file(folder)
        if weights.is_dir() and not lora.exists():
            raise UserError(
                f"{folder} holds a DiT trained whole, without LoRA: --set finetune.start=encoder"
            )
        model.backbone.load_adapters(lora)
    return model


def is_base_of(experiment: Experiment, folder: Path) -> bool:
    """Return whether a checkpoint is that of the DiT, trained whole, whose LoRA is to train.

    Then its encoder carries over, and LoRA begins.
    """
    weights = folder / "backbone"
    lora = experiment.train.trains == "lora" and not lora_file(folder).exists()
    return lora and weights.is_dir() and _is_same(config.to_json(experiment.backbone), weights)


def _is_same(backbone: Mapping[str, Any], weights: Path) -> bool:
    named = backbone.get("weights")
    if not isinstance(named, str):
        return False
    shipped = registry().weights.get(named)
    own = expand_path(named)
    place = shipped / "backbone" if shipped and not own.exists() else own
    return place.resolve() == weights.resolve()


def with_weights(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with its backbone's weights taken from `folder`."""
    return config.apply_sets(experiment, [f"backbone.weights={folder}"])


def check_start(start: Path, experiment: Experiment) -> None:
    """Raise UserError if an experiment cannot go on from what a run trained, by their backbones.

    Args:
        start: a checkpoint, or a folder of weights; of one without a spec.json nothing is known.
        experiment: what is to train.
    """
    known = any((folder / "spec.json").exists() for folder in (start, start.parent))
    if start.is_dir() and not known:
        return
    before, _ = read_run(start)
    try:
        experiment.backbone.check_start(before.backbone)
    except ValueError as error:
        raise UserError(f"{start}: {error}") from error


def save_model(folder: Path, model: Model) -> None:
    """Write the encoder, and the backbone or its adapters as the experiment trains them."""
    if model.experiment.remembers:
        save_encoder(folder / "memory.safetensors", model)
    if model.experiment.train.trains == "all":
        model.backbone.save_weights(folder / "backbone")
    if model.backbone.adapters():
        model.backbone.save_adapters(folder / "lora.safetensors")


def save_encoder(path: Path, model: Model) -> None:
    """Write φ under the prefix `memory.`, with a header that says what it fits.

    Raises:
        RuntimeError: φ has parameters that are missing in its state (a dead save).
    """
    state = {PREFIX + name: tensor for name, tensor in model.encoder.state_dict().items()}
    expected = {PREFIX + name for name, _ in model.encoder.named_parameters()}
    if not expected <= set(state):
        raise RuntimeError(f"refusing to save without memory keys: {sorted(expected - set(state))}")
    write_tensors(path, state, encoder_header(model))


def encoder_header(model: Model) -> dict[str, Any]:
    """Return what an encoder file says of itself."""
    fit = model.backbone.fit()
    return {
        "format": 1,
        "stage": model.experiment.stage,
        "compressors": config.identity(model.experiment)["compressors"],
        "backbone": config.to_json(model.experiment)["backbone"]["type"],
        "codec": config.to_json(model.experiment.backbone.codec),
        "width": fit.geometry.width,
        "fit": fit.digest,
    }


def load_encoder(path: Path, encoder: MemoryEncoder, *, width: int, digest: str) -> None:
    """Load φ from its file.

    Args:
        path: the file.
        encoder: what to load into.
        width: of the DiT that it is to fit.
        digest: of that DiT's first projection (`Fit.digest`).

    Raises:
        UserError: the file is no encoder, fits a DiT of another width or first projection, or
            its tensors are not those of this encoder.
    """
    header, tensors = read_encoder(path)
    if header.get("width") != width:
        raise UserError(f"{path} fits a DiT of width {header.get('width')}, this one has {width}")
    if header.get("fit") != digest:
        raise UserError(f"{path} was trained with another first projection of the DiT")
    state = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    if odd := differing(state, encoder.state_dict()):
        raise UserError(f"{path} is of another encoder: {odd[0]} differs ({len(odd)} tensors do)")
    encoder.load_state_dict(state)


def read_encoder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header of an encoder's file, or of a bundle, and the encoder's tensors by key.

    Raises:
        UserError: the file is missing, damaged, or not ours.
    """
    with open_tensors(path) as file:
        header = read_header(file, path)
        if not isinstance(header, dict):
            raise UserError(f"{path} is no encoder: its header is no JSON object")
        names = [n for n in file.keys() if n.startswith(PREFIX) and not n.startswith(ENHANCER)]
        return header, {name: file.get_tensor(name) for name in names}


def differing(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that only one side has, or that differ in shape, sorted."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    others = {name: tensor.shape for name, tensor in expected.items()}
    return sorted(n for n in shapes | others if shapes.get(n) != others.get(n))


def write_state(
    checkpoint: Path, optimizer: dict[str, Any], average: EMA | None, state: Mapping[str, Any]
) -> None:
    """Write training_state/ into a checkpoint that is not in its place yet.

    Args:
        checkpoint: where to.
        optimizer: its state.
        average: of the weights, where there is one.
        state: plain data for state.json.
    """
    folder = checkpoint / STATE_FOLDER
    folder.mkdir()
    torch.save(optimizer, folder / "optimizer.pt")
    if average:
        write_tensors(folder / "raw.safetensors", average.weights, {})
        write_tensors(folder / "average.safetensors", average.mean, {"updates": average.updates})
    write_json(folder / "state.json", state)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return what state.json of a checkpoint says.

    Raises:
        UserError: it is missing or damaged.
    """
    keys = ("step", "live", "losses", "loss", "gain")
    return read_object(checkpoint / STATE_FOLDER / "state.json", "checkpoint to resume", *keys)


def load_raw(checkpoint: Path, weights: Mapping[str, Parameter]) -> None:
    """Put the weights as they trained in the place of their average.

    Raises:
        UserError: the file is missing, damaged, or of other weights.
    """
    _load_into(weights, checkpoint / STATE_FOLDER / "raw.safetensors")


def load_average(checkpoint: Path, average: EMA) -> None:
    """Go on with the average of a checkpoint.

    Raises:
        UserError: the file is missing, damaged, or of other weights.
    """
    path = checkpoint / STATE_FOLDER / "average.safetensors"
    with open_tensors(path) as file:
        average.updates = int(read_header(file, path)["updates"])
    _load_into(average.mean, path)


def _load_into(targets: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors of a file into those of the same names and shapes: UserError if others."""
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if odd := differing(tensors, targets):
        raise UserError(f"{path} holds other weights than this run trains, such as {odd[0]}")
    copy_into(targets, tensors)


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer's state of a checkpoint.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = checkpoint / STATE_FOLDER / "optimizer.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise UserError(f"{path} cannot be read: {error}") from None
    whole = "state" in state  # of one optimizer; `MuonAdamW` has two, and is never sharded
    optimizer.load_state_dict(shard_optimizer_state(state, optimizer) if whole else state)
