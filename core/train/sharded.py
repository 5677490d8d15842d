"""Sharded weights (FSDP2): asked for through Accelerate's launcher, whole again in files.

Under FSDP2 every process holds a part of each parameter (a DTensor), and parameters are whole only
inside the root's call. Files never know: a checkpoint is the same whether it was sharded or not.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn import Parameter

from ..errors import UserError
from ..experiment import TrainSpec
from .parts import is_sharded, whole
from .stage import StageOne


def asked() -> bool:
    """Whether the launcher asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def prepare(accelerator: Any, stage: StageOne, optimizer: Any) -> tuple[Any, Any]:
    """Give stage and optimizer as Accelerate prepares them: alone, under DDP, or sharded."""
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
    """Give the places of the parameters that files hold or are checked against."""
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
