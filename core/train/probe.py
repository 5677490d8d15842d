"""Fitting a probe: a head on the frozen memory of a run, over a store, with a small budget."""

from __future__ import annotations

import hashlib
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from .. import config as edge
from ..data.store import Store
from ..data.windows import Batch, WindowBatches, Windows
from ..errors import LongtakeError, UserError
from ..interfaces.retriever import LatentFrames, Retriever, Scene
from ..interfaces.spec import RetrieverSpec
from ..model import Model, compressor_needs
from ..registry import registry
from ..tools.files import open_tensors, read_header, write_tensors
from ..values.draws import Draws
from ..values.grid import Geometry, Size3
from ..values.memory import Memory
from ..values.shapes import Counts, Frames, Targets
from .pretrain import check_store

# ⟦core/probe.py⟧ Probe: what a memory holds, asked without the generator (a small head fitted on it).


S = TypeVar("S", bound=RetrieverSpec)
KIND = "probe"


class Head(nn.Module, ABC):
    """A regression from memory to latent frames; all its parameters are trained."""

    def begin(self, memory: Memory) -> None:
        """See the first memory before fitting, to set scales kept in buffers; default: nothing."""

    @abstractmethod
    def forward(self, memory: Memory, omega: Frames, start: Counts, size: Size3) -> Targets:
        """Return the latents of frames Ω `[B, C, K, H, W]`, float32.

        Args:
            memory: of the window; an empty one is legal.
            omega: frames in the window, `[B, K]`.
            start: absolute latent frame of the window, `[B]`; memory's places are absolute.
            size: of the window's latents (only height and width are read).
        """


@frozen(kw_only=True)
class Budget:
    """What a head is fitted with: optimizer steps, samples in each, learning rate, seed."""

    steps: int
    batch: int
    rate: float
    seed: int


class Probing(Retriever[S], ABC, Generic[S]):
    """A retriever whose answer is a head that was fitted beforehand (`core.train.probe`).

    A plugin is this class with three class methods: the head as it begins, the budget, and the file
    of the fitted head. The encoder stays as it is, so a probe says how much of the past is in the
    tokens at all, whatever the generator makes of them.
    """

    def __init__(self, spec: S) -> None:
        super().__init__(spec)
        place = type(self).weights(spec)
        if place is None:
            raise UserError(
                "a probe needs its head: fit it with `longtake probe RUN --data STORE`, which says "
                "how to name it"
            )
        self.path = Path(place)
        self.header, self.state = read_probe(self.path)
        self.fitted: Head | None = None

    @classmethod
    @abstractmethod
    def head(cls, spec: S, geometry: Geometry) -> Head:
        """Return a fresh head for a backbone's shapes."""

    @classmethod
    @abstractmethod
    def budget(cls, spec: S) -> Budget:
        """Return what the head is fitted with."""

    @classmethod
    @abstractmethod
    def weights(cls, spec: S) -> str | None:
        """Return the file of the fitted head, or None."""

    @torch.no_grad()
    def __call__(self, scene: Scene, omega: Frames, generator: torch.Generator) -> LatentFrames:
        """Return the latents of Ω, frame by frame; nothing is random.

        Raises:
            UserError: the head was fitted on another memory or another head's spec.
        """
        head = self._head(scene)
        start = scene.history.start
        each = omega.to(start.device).split(1, dim=1)
        found = [head(scene.memory, one, start, scene.size) for one in each]
        return LatentFrames(latents=torch.cat(found, dim=2))

    def _head(self, scene: Scene) -> Head:
        if self.fitted is None:
            check_header(
                self.path, self.header, memory_facts(scene.backbone.geometry, scene.memory)
            )
            head = type(self).head(self.spec, scene.backbone.geometry)
            _load(self.path, head, self.state)
            self.fitted = head.eval().to(scene.text.embeddings.device)
        return self.fitted


def memory_facts(geometry: Geometry, memory: Memory) -> dict[str, Any]:
    """Return what a head depends on: the width of tokens, a latent's channels, the parts' names."""
    return {
        "width": geometry.width,
        "channels": geometry.channels,
        "parts": [part.name for part in memory.parts],
    }


def read_probe(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a fitted head.

    Raises:
        UserError: the file is missing, damaged or of something else.
    """
    with open_tensors(path) as file:
        header = read_header(file, path)
        state = {name: file.get_tensor(name) for name in file.keys()}
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise UserError(f"{path} is no fitted probe: make one with `longtake probe`")
    return header, state


def check_header(path: Path, header: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a head that was fitted on another memory: UserError."""
    for key, value in wanted.items():
        if key == "parts" and not value:
            continue  # an empty memory says nothing
        if header.get(key) != value:
            raise UserError(
                f"{path} was fitted on a memory with {key} {_shown(header.get(key))}, this one has "
                f"{_shown(value)}"
            )


def _shown(value: Any) -> str:
    many = isinstance(value, Sequence) and not isinstance(value, str)
    return ", ".join(map(str, value)) if many else str(value)


def _load(path: Path, head: Head, state: dict[str, Tensor]) -> None:
    wanted = {name: x.shape for name, x in head.state_dict().items()}
    if wanted != {name: x.shape for name, x in state.items()}:
        raise UserError(f"{path} is of another head: give the probe the spec it was fitted with")
    head.load_state_dict(state)


FRAMES = 4  # asked of each sample
WARMUP = 20  # steps
Progress = Callable[[int, int, str], None]


@frozen(eq=False, kw_only=True)
class Fitted:
    """A head, fitted.

    Attributes:
        head: in evaluation, on the model's device.
        loss: mean squared error over the last tenth of the steps.
        spread: mean square of the targets there: the loss of giving zeros.
        header: what its file says.
    """

    head: Head
    loss: float
    spread: float
    header: dict[str, Any]

    @property
    def explained(self) -> float:
        """How much of the targets' mean square the head gives back: 1 is all, 0 nothing."""
        return 1 - self.loss / self.spread


def probing(spec: RetrieverSpec) -> type[Probing[RetrieverSpec]]:
    """Return the class of a probe's spec: UserError where the spec is of another retriever."""
    cls = registry().load(spec)
    if not issubclass(cls, Probing):
        raise UserError(f"{registry().find(spec).name} has no head to fit: it is no probe")
    found: type[Probing[RetrieverSpec]] = cls
    return found


def fit_probe(
    model: Model, store: Store, spec: RetrieverSpec, *, progress: Progress | None = None
) -> Fitted:
    """Return a head fitted on the memories of clean windows; the model is left as it is.

    Windows are those of training (lengths and clips by the experiment's `train`, whole frames),
    of each sample random frames are asked. The same seed gives the same head on one device.

    Args:
        model: whose memory is asked, on its device.
        store: clips to fit on; measure on others.
        spec: of a probe.
        progress: called with step, steps and a note after every step.

    Raises:
        UserError: the experiment has no memory, the spec is no probe's, or the store was made for
            something else.
        LongtakeError: the loss is not finite.
    """
    experiment = model.experiment
    if not experiment.remembers:
        raise UserError(f"{experiment.name} has no compressor, so no memory to ask")
    cls = probing(spec)
    budget = cls.budget(spec)
    check_store(experiment, store)
    device = next(model.backbone.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        head = cls.head(spec, model.backbone.geometry).to(device)
    pairs, facts = _train(model, store, head, budget, progress)
    last = pairs[-max(1, len(pairs) // 10) :]
    loss, spread = (statistics.fmean(column) for column in zip(*last, strict=True))
    header = facts | _header(model, store, spec, loss, spread)
    return Fitted(head=head.eval(), loss=loss, spread=spread, header=header)


def write_probe(path: Path, fitted: Fitted) -> Path:
    """Write a head, whole or not at all, and give its path."""
    write_tensors(path, fitted.head.state_dict(), fitted.header)
    return path


def _train(
    model: Model, store: Store, head: Head, budget: Budget, progress: Progress | None
) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """Fit `head`; give loss and spread of every step, and the facts of the memory."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=budget.rate, betas=(0.9, 0.99))
    pairs: list[tuple[float, float]] = []
    facts: dict[str, Any] = {}
    head.train()
    for step, batch in enumerate(_batches(model, store, budget)):
        memory = _remembered(model, batch)
        if not step:
            facts = memory_facts(model.backbone.geometry, memory)
            head.begin(memory)
        for group in optimizer.param_groups:
            group["lr"] = budget.rate * _scale(step, budget.steps)
        draws = Draws.of(budget.seed, step, batch.places, "probe")
        pairs.append(_step(head, optimizer, batch, memory, draws))
        if progress:
            progress(step + 1, budget.steps, f"loss {pairs[-1][0]:.4f} of {pairs[-1][1]:.4f}")
    return pairs, facts


def _batches(model: Model, store: Store, budget: Budget) -> Iterator[Batch]:
    train = attrs.evolve(
        model.experiment.train, batch=budget.batch, accumulate=1, seed=budget.seed, crop=(0, 0)
    )
    needs = compressor_needs(model.experiment)
    windows = Windows.of(store, model.backbone.geometry, train, needs)
    dataset = WindowBatches(store, windows, needs, budget.steps)
    device = next(model.backbone.parameters()).device
    return (dataset[step].to(device) for step in range(budget.steps))


@torch.no_grad()
def _remembered(model: Model, batch: Batch) -> Memory:
    training = model.encoder.training
    memory: Memory = model.encoder.eval()(batch.history)
    model.encoder.train(training)
    return memory


def _step(
    head: Head,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    memory: Memory,
    draws: Draws,
) -> tuple[float, float]:
    history = batch.history
    count, device = min(FRAMES, history.size.time), history.latents.device
    omega = draws.stack(lambda g: torch.randperm(history.size.time, generator=g)[:count])
    omega = omega.sort(dim=1).values.to(device)
    targets = _frames(history.latents, omega)
    loss = F.mse_loss(head(memory, omega, history.start, history.size), targets)
    if not bool(loss.isfinite()):
        raise LongtakeError(f"probe: the loss is not finite on {', '.join(batch.names)}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach()), float(targets.square().mean())


def _frames(latents: Tensor, omega: Tensor) -> Tensor:
    rows = torch.arange(len(omega), device=omega.device)[:, None]
    return latents.transpose(1, 2)[rows, omega].transpose(1, 2).float()


def _scale(step: int, steps: int) -> float:
    """Return the share of the learning rate: linear warm-up, then linear decay to zero."""
    return min(1.0, (step + 1) / WARMUP) * (1 - step / steps)


def _header(
    model: Model, store: Store, spec: RetrieverSpec, loss: float, spread: float
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for _, tensor in sorted(model.encoder.state_dict().items()):
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return {
        "format": 1,
        "kind": KIND,
        "experiment": model.experiment.name,
        "spec": edge.to_json(spec),
        "encoder": digest.hexdigest()[:16],
        "data": str(store.root),
        "loss": loss,
        "spread": spread,
    }
