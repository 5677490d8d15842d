"""Checkpoints of a run, as users read them: never pickled (conventions A).

RUN/spec.json, metrics.jsonl, pace.jsonl
RUN/checkpoint-<step>/memory.safetensors
                      backbone/ (a trained DiT) or lora.safetensors
                      training_state/ (what only resuming reads: `state`)

Under `train.ema` the weights here are the averaged ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from .. import config as edge
from ..errors import UserError
from ..experiment import Experiment
from ..interfaces.compressor import MemoryEncoder
from ..model import Model, build_model
from ..tools.files import open_tensors, read_header, read_object, write_json, write_tensors
from .distributed import spread
from .ema import Average, put, read_like

PREFIX = "memory."
ENHANCER = "memory.enhancer"  # begins keys of the backbone: what reads features of a memory


def checkpoints(run: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first."""
    found = [p for p in run.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the number of steps that a checkpoint has trained."""
    return int(checkpoint.name.rpartition("-")[2])


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
        RuntimeError: φ has parameters but none of them is in its state (a dead save).
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
        "stage": "pretrain",
        "compressors": edge.to_json(model.experiment)["compressors"],
        "backbone": edge.to_json(model.experiment)["backbone"]["type"],
        "codec": edge.to_json(model.experiment.backbone.codec),
        "width": fit.geometry.width,
        "fit": fit.digest,
    }


def load_encoder(path: Path, encoder: MemoryEncoder, *, width: int, digest: str) -> None:
    """Load φ from its file.

    Raises:
        UserError: the file is no encoder, fits a DiT of another width or first projection, or
            its tensors are not those of this encoder.
    """
    header, state = read_encoder(path)
    if header.get("width") != width:
        raise UserError(f"{path} fits a DiT of width {header.get('width')}, this one has {width}")
    if header.get("fit") != digest:
        raise UserError(f"{path} was trained with another first projection of the DiT")
    _assign(path, encoder, {name.removeprefix(PREFIX): tensor for name, tensor in state.items()})


def read_encoder(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
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


def _assign(path: Path, encoder: MemoryEncoder, state: dict[str, torch.Tensor]) -> None:
    wanted = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    if wanted != found:
        odd = sorted(n for n in wanted | found if wanted.get(n) != found.get(n))
        raise UserError(f"{path} is of another encoder: {odd[0]} differs ({len(odd)} tensors do)")
    encoder.load_state_dict(state)


def load_model(folder: Path, experiment: Experiment) -> Model:
    """Return the model of a checkpoint folder.

    Raises:
        UserError: something is missing, damaged, or of another model.
    """
    weights = folder / "backbone"
    if weights.is_dir():
        experiment = with_weights(experiment, weights)
    elif experiment.train.trains == "all":
        raise UserError(f"{folder} has no backbone/, but its experiment trains all of the DiT")
    model = build_model(experiment, adapters=True)
    lora = folder / "lora.safetensors"
    if model.backbone.adapters() and weights.is_dir() and not lora.exists():
        raise UserError(
            f"{folder} holds a DiT trained whole, without LoRA: to train LoRA on it, leave it out "
            f"and --set backbone.weights={weights}"
        )
    if model.backbone.adapters():
        model.backbone.load_adapters(lora)
    if experiment.remembers:
        _load_memory(folder / "memory.safetensors", model)
    return model


def _load_memory(path: Path, model: Model) -> None:
    fit = model.backbone.fit()
    load_encoder(path, model.encoder, width=fit.geometry.width, digest=fit.digest)


def with_weights(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with its backbone's weights taken from `folder`."""
    return edge.apply_sets(experiment, [f"backbone.weights={folder}"])


def read_run(place: Path) -> tuple[Experiment, Path]:
    """Return the experiment and the newest checkpoint folder of a run.

    `place` may also be one checkpoint, or a folder of shipped weights with its own spec.json.

    Raises:
        UserError: there is no run, or it has no checkpoint yet.
    """
    if not place.is_dir():
        raise UserError(f"{place}: no such run")
    shipped = any((place / part).exists() for part in ("memory.safetensors", "backbone"))
    spec = place if (place / "spec.json").exists() or not shipped else place.parent
    data = read_object(spec / "spec.json", "run (make one with `longtake pretrain`)", "experiment")
    try:
        experiment = edge.from_json(data["experiment"], Experiment)
    except edge.SpecError as error:
        raise UserError(f"{spec / 'spec.json'}: {error}") from error
    if shipped:
        return experiment, place
    if not checkpoints(place):
        raise UserError(f"{place} has no checkpoint yet: let `longtake pretrain` reach one")
    return experiment, checkpoints(place)[-1]


def load_run(place: Path) -> Model:
    """Return the newest model of a run, for reading."""
    experiment, folder = read_run(place)
    return load_model(folder, experiment).eval()


# ⟦core/train/state.py⟧ training_state/: what resuming needs beside the weights that users read. optimizer.pt moments of the optimizer raw.safetensors the weights as they train, and average.safetensors their average in fp32, where there is an average (`train.ema`) state.json the step, and what metrics.jsonl is still owed


FOLDER = "training_state"


def write_state(
    checkpoint: Path, optimizer: dict[str, Any], average: Average | None, notes: Mapping[str, Any]
) -> None:
    """Write the folder into a checkpoint that is not in its place yet.

    Args:
        checkpoint: where to.
        optimizer: its state.
        average: of the weights, where there is one.
        notes: plain data for state.json.
    """
    folder = checkpoint / FOLDER
    folder.mkdir()
    torch.save(optimizer, folder / "optimizer.pt")
    if average:
        write_tensors(folder / "raw.safetensors", average.weights, {})
        average.save(folder / "average.safetensors")
    write_json(folder / "state.json", notes)


def read_notes(checkpoint: Path) -> dict[str, Any]:
    """Return what state.json of a checkpoint says.

    Raises:
        UserError: it is missing or damaged.
    """
    return read_object(checkpoint / FOLDER / "state.json", "checkpoint to resume", "step")


def load_raw(checkpoint: Path, weights: Mapping[str, Parameter]) -> None:
    """Put the weights as they trained in the place of their average.

    Raises:
        UserError: the file is missing, damaged, or of other weights.
    """
    put(weights, read_like(checkpoint / FOLDER / "raw.safetensors", weights))


def load_average(checkpoint: Path, average: Average) -> None:
    """Go on with the average of a checkpoint.

    Raises:
        UserError: the file is missing, damaged, or of other weights.
    """
    average.load(checkpoint / FOLDER / "average.safetensors")


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer's state of a checkpoint.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = checkpoint / FOLDER / "optimizer.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise UserError(f"{path} cannot be read, resume an older checkpoint: {error}") from None
    optimizer.load_state_dict(spread(state, optimizer) if "state" in state else state)


def realign(module: nn.Module) -> None:
    """Move weights that lie in a mapped file into memory of torch's own.

    A file puts tensors at any address, torch at multiples of 64 bytes. Kernels on a CPU sum in
    another order where an address is odd, so that a resumed run would differ in the last bit.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
