"""Sharded weights (FSDP2): asked for through Accelerate's launcher, whole again in files.

Under FSDP2 every process holds a shard of each parameter (a DTensor), and parameters are whole only
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
from .loss import Stage

T = TypeVar("T")


def fsdp_requested() -> bool:
    """Return whether the launcher asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_launch(spec: TrainSpec) -> None:
    """Refuse an FSDP that cannot work here, before processes wait for each other.

    Raises:
        UserError: it is FSDP 1, or would rename weights, or the optimizer needs them whole.
    """
    if not fsdp_requested():
        return
    if os.environ.get("FSDP_VERSION") != "2":
        raise UserError("FSDP 1 keeps no parameter by its name: launch with --fsdp_version 2")
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise UserError("FSDP's own checkpointing renames weights: --set train.checkpointing=true")
    if spec.optimizer == "muon":
        raise UserError("muon needs whole matrices, FSDP shards them: --set train.optimizer=adamw")


def prepare(accelerator: Any, stage: Stage, optimizer: Any) -> tuple[Any, Any]:
    """Return stage and optimizer as Accelerate prepares them: alone, under DDP, or sharded."""
    from accelerate.utils import DistributedType

    sharded = fsdp_requested() and accelerator.distributed_type != DistributedType.NO
    if sharded:
        _configure_fsdp(accelerator)
    wrapped, prepared = accelerator.prepare(stage, optimizer)
    if sharded:
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(stage, "as_forward")
    return wrapped, prepared


def _configure_fsdp(accelerator: Any) -> None:
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


@contextmanager
def full_weights(stage: Stage, *, here: bool) -> Iterator[None]:
    """Put whole parameters, on the CPU, in the place of sharded ones for a while.

    Args:
        stage: whose parameters; only those that `save_model` reads are made whole.
        here: whether this process needs them; all must take part.
    """
    reshard(stage)
    sharded = [(owner, key, p) for owner, key, p in _saved_parameters(stage) if is_sharded(p)]
    for owner, key, parameter in sharded:
        full = full_tensor(parameter.detach())
        if here:
            owner._parameters[key] = Parameter(full.cpu(), parameter.requires_grad)
    try:
        yield
    finally:
        for owner, key, parameter in sharded:
            owner._parameters[key] = parameter


def _saved_parameters(stage: Stage) -> list[tuple[nn.Module, str, Parameter]]:
    """Return the parameters, each with its module and key, that files hold or are checked with."""
    everything = stage.spec.trains == "all"
    read = {id(p) for p in (*stage.encoder.parameters(), *stage.backbone.fitted())}
    return [
        (owner, key, p)
        for owner in stage.modules()
        for key, p in owner._parameters.items()
        if p is not None and (everything or p.requires_grad or id(p) in read)
    ]


def reshard(stage: Stage) -> None:
    """Let go of what a call without a backward left whole: the next call must see new weights."""
    if not fsdp_requested():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in stage.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(tensor: Tensor) -> bool:
    """Return whether several processes hold a shard of a tensor each."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


@torch.no_grad()
def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor whole; all processes must ask in the same order."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full_tree(value: T) -> T:
    """Return dicts and lists of tensors with all of them whole, on the CPU if they were sharded."""
    if isinstance(value, Tensor):
        return full_tensor(value).cpu() if is_sharded(value) else value  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {name: full_tree(inner) for name, inner in value.items()}  # type: ignore[return-value]
    return [full_tree(x) for x in value] if isinstance(value, list) else value  # type: ignore[return-value]


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a whole tensor, where `like` is sharded; else the tensor."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    moved = value.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def shard_optimizer_state(
    state: dict[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Return the whole state of an optimizer, its moments sharded as its parameters are."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {
            name: shard_like(x, weights[index]) if _is_moment(name, x) else x
            for name, x in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": moments}


def _is_moment(name: str, value: Any) -> bool:
    return name != "step" and isinstance(value, Tensor) and bool(value.shape)
