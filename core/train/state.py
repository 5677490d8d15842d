"""training_state/: what resuming needs beside the weights that users read.

optimizer.pt          moments of the optimizer
raw.safetensors       the weights as they train, and
average.safetensors   their average in fp32, where there is an average (`train.ema`)
state.json            the step, and what metrics.jsonl is still owed
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from ..errors import UserError
from ..files import read_object, write_json, write_tensors
from .ema import Average, put, read_like
from .parts import spread

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
    """Give what state.json of a checkpoint says.

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
