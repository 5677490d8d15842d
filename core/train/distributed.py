"""Sharded weights (FSDP2): asked for through Accelerate's launcher, whole again in files.

Under FSDP2 every process holds a part of each parameter (a DTensor), and parameters are whole only
inside the root's call. Files never know: a checkpoint is the same whether it was sharded or not.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ..errors import UserError
from ..experiment import TrainSpec
from .loss import StageOne

# ⟦core/train/parts.py⟧ Parts: tensors that several processes hold together (DTensor), made whole and dealt out again.


T = TypeVar("T")


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is held in parts by several processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its parts; all processes must ask in the same order."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole_tree(value: T) -> T:
    """Return dicts and lists of tensors with all their parts, on the CPU where they were sharded."""
    if isinstance(value, Tensor):
        return whole(value).cpu() if is_sharded(value) else value  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {name: whole_tree(inner) for name, inner in value.items()}  # type: ignore[return-value]
    return [whole_tree(x) for x in value] if isinstance(value, list) else value  # type: ignore[return-value]


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, where `like` is sharded; else the tensor."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    place = value.to(like.device)
    return distribute_tensor(place, like.device_mesh, like.placements, src_data_rank=None)


def _is_moment(name: str, held: Any) -> bool:
    return name != "step" and isinstance(held, Tensor) and bool(held.shape)


def spread(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the whole state of an optimizer as its parameters are held here."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {
            name: part_of(x, weights[index]) if _is_moment(name, x) else x
            for name, x in held.items()
        }
        for index, held in state["state"].items()
    }
    return {**state, "state": moments}


def asked() -> bool:
    """Whether the launcher asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def prepare(accelerator: Any, stage: StageOne, optimizer: Any) -> tuple[Any, Any]:
    """Return stage and optimizer as Accelerate prepares them: alone, under DDP, or sharded."""
    from accelerate.utils import DistributedType

    shared = asked() and accelerator.distributed_type != DistributedType.NO
    if shared:
        _set_up(accelerator)
    wrapped, prepared = accelerator.prepare(stage, optimizer)
    if shared:
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(stage, "within")
    return wrapped, prepared


def _set_up(accelerator: Any) -> None:
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate shards on accelerators only, but gloo does it as well: CI sees the same code
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        state.distributed_type = DistributedType.FSDP
    # nothing works in place on what a block gives, which is what torch warns of on every process
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    plugin = state.fsdp_plugin
    plugin.cpu_ram_efficient_loading = False  # it knows no buffers, and φ has some
    plugin.mixed_precision_policy = None  # the stage runs under autocast, as without shards
    if plugin.auto_wrap_policy is None:
        plugin.auto_wrap_policy = transformer_auto_wrap_policy


def check_launch(spec: TrainSpec) -> None:
    """Refuse an FSDP that cannot work here, before processes wait for each other.

    Raises:
        UserError: it is FSDP 1, or would rename weights, or the optimizer needs them whole.
    """
    if not asked():
        return
    if os.environ.get("FSDP_VERSION") != "2":
        raise UserError("FSDP 1 keeps no parameter by its name: launch with --fsdp_version 2")
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise UserError("FSDP's own checkpointing renames weights: --set train.checkpointing=true")
    if spec.optimizer == "muon":
        raise UserError("muon needs whole matrices, FSDP shards them: --set train.optimizer=adamw")


@contextmanager
def whole_weights(stage: StageOne, *, here: bool) -> Iterator[None]:
    """Put whole parameters, on the CPU, in the place of sharded ones for a while.

    Args:
        stage: whose parameters; only those that `save_model` reads are made whole.
        here: whether this process wants them; all must take part.
    """
    rest(stage)
    slots = [(owner, key, p) for owner, key, p in _slots(stage) if is_sharded(p)]
    for owner, key, parameter in slots:
        full = whole(parameter.detach())
        if here:
            owner._parameters[key] = Parameter(full.cpu(), parameter.requires_grad)
    try:
        yield
    finally:
        for owner, key, parameter in slots:
            owner._parameters[key] = parameter


def _slots(stage: StageOne) -> list[tuple[nn.Module, str, Parameter]]:
    """Return the places of the parameters that files hold or are checked against."""
    everything = stage.spec.trains == "all"
    read = {id(p) for p in (*stage.encoder.parameters(), *stage.backbone.fitted())}
    return [
        (owner, key, p)
        for owner in stage.modules()
        for key, p in owner._parameters.items()
        if p is not None and (everything or p.requires_grad or id(p) in read)
    ]


def rest(stage: StageOne) -> None:
    """Let go of what a call without a backward left whole: the next call must see new weights."""
    if not asked():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in stage.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
