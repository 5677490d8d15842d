"""One optimizer step, over micro-batches and over all processes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from attrs import define, field
from torch import Tensor
from torch.nn import Parameter

from ..data.batch import Batch
from ..errors import LongtakeError
from .ema import trained
from .liveness import Liveness, memory_parameters
from .optim import learning_rate
from .parts import whole
from .worker import Worker


@define
class Stepper:
    """Trains a worker's model, a step at a time; `liveness` watches the first steps of a run."""

    worker: Worker
    liveness: Liveness | None
    weights: list[Parameter] = field(factory=list, repr=False)

    def __attrs_post_init__(self) -> None:
        self.weights = list(trained(self.worker.stage).values())

    @property
    def lived(self) -> bool:
        """Whether memory was found alive, or is not watched."""
        return self.liveness is None or self.liveness.passed

    def step(self, batch: Batch, step: int) -> float:
        """Train one step on this process's share of a batch and give the loss over all of it.

        Raises:
            LongtakeError: the loss or the gradient is not finite; the weights are as they were.
            DeadMemory: some parameters of the memory do not train.
        """
        worker = self.worker
        for group in worker.optimizer.param_groups:
            group["lr"] = learning_rate(worker.spec, step)
        loss = gradients(worker, batch, step)
        named = memory_parameters(worker.stage)
        watch = None if worker.stage.drops_memory(step) else self.liveness
        if watch:
            watch.after_backward(named)
        norm = whole(worker.accelerator.clip_grad_norm_(self.weights, worker.spec.clip))
        if not bool(torch.isfinite(norm)):
            names = worker.gather_names(batch.names)  # the norm is one for all processes
            raise LongtakeError(_sick("gradient", float(norm), step, names))
        worker.optimizer.step()
        worker.optimizer.zero_grad(set_to_none=True)
        if worker.average:
            worker.average.update()
        if watch:
            watch.after_step(named)
        return loss


def gradients(worker: Worker, batch: Batch, step: int) -> float:
    """Leave the gradient of a step's loss on the weights, and give that loss.

    Both are means over all samples of the step: micro-batches and processes have equal shares.

    Raises:
        LongtakeError: the loss is not finite; all processes raise it, with the clips' names.
    """
    count = worker.spec.accumulate
    parts = batch.deal(count) if count > 1 else [batch]
    losses = []
    for k, part in enumerate(parts):
        with _apart(worker, last=k == count - 1):
            loss = worker.wrapped(part.to(worker.device), step)
            worker.accelerator.backward(loss / count if count > 1 else loss)
        losses.append(loss.detach())
    every = worker.gather(torch.stack(losses))
    _check(worker, every, losses, parts, step)
    return float(every.mean())


def _apart(worker: Worker, *, last: bool) -> AbstractContextManager[None]:
    """Sum gradients within the process; with the last micro-batch, over all of them."""
    if last:
        return nullcontext()
    apart: AbstractContextManager[None] = worker.accelerator.no_sync(worker.wrapped)
    return apart


def _check(
    worker: Worker, every: Tensor, mine: list[Tensor], parts: list[Batch], step: int
) -> None:
    if bool(torch.isfinite(every).all()):  # all processes see the same losses: they part nowhere
        return
    sick = [part for part, loss in zip(parts, mine, strict=True) if not torch.isfinite(loss)]
    names = worker.gather_names([name for part in sick for name in part.names])
    value = next(float(loss) for loss in every if not torch.isfinite(loss))
    raise LongtakeError(_sick("loss", value, step, names))


def _sick(what: str, value: float, step: int, names: list[str]) -> str:
    return (
        f"the {what} is {value} at step {step}, on clips {', '.join(names)}; the last checkpoint "
        "is whole: lower train.rate, or leave those clips out, and --resume latest"
    )
