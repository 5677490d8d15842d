"""Probes: what a memory holds, asked without the generator, by a small head fitted on it.

A probe is a retriever whose head was fitted beforehand, by `fit_probe`, on the frozen memory of a
run. Author one by deriving from `FittedRetriever`.
"""

from __future__ import annotations

import hashlib
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
import torch
import torch.nn.functional as F
from attrs import frozen
from einops import rearrange
from torch import Tensor, nn

from .. import config
from ..data.store import Store, check_fits
from ..data.windows import Batch, WindowBatches, WindowSampler
from ..errors import LongtakeError, UserError
from ..interfaces.retriever import LatentFrames, Retriever, Scene
from ..interfaces.spec import RetrieverSpec
from ..model import Model, compressor_needs
from ..registry import registry
from ..tools.files import check_out_file, open_tensors, read_header, write_tensors
from ..tools.progress import Report
from ..values.draws import Draws
from ..values.grid import Geometry, Size3
from ..values.memory import Memory
from ..values.shapes import Counts, Frames, Targets
from .checkpoint import differing

S = TypeVar("S", bound=RetrieverSpec)
KIND = "probe"  # what a head's file says it is
FRAMES = 4  # asked of each sample
WARMUP = 20  # steps


class ProbeHead(nn.Module, ABC):
    """A regression from memory to latent frames; all its parameters are trained."""

    def calibrate(self, memory: Memory) -> None:
        """Set scales kept in buffers by the first memory, before fitting; default: nothing."""

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
class FitSettings:
    """What a head is fitted with: optimizer steps, samples in each, learning rate, seed."""

    steps: int
    batch: int
    rate: float
    seed: int


class FittedRetriever(Retriever[S], ABC, Generic[S]):
    """A retriever whose answer is a head that was fitted beforehand (`core.train.probe`).

    A plugin is this class with three class methods: the fresh head, how it is fitted, and the file
    of the fitted head. The encoder stays as it is, so a probe says how much of the past is in the
    tokens at all, whatever the generator makes of them.
    """

    def __init__(self, spec: S) -> None:
        super().__init__(spec)
        file = type(self).weights_file(spec)
        if file is None:
            raise UserError(
                "a probe needs its head: fit it with `longtake probe RUN --data STORE`, which says "
                "how to name it"
            )
        self.path = Path(file)
        self.header, self.state = read_probe(self.path)
        self.fitted: ProbeHead | None = None

    @classmethod
    @abstractmethod
    def build_head(cls, spec: S, geometry: Geometry) -> ProbeHead:
        """Return a fresh head for a backbone's shapes."""

    @classmethod
    @abstractmethod
    def fit_settings(cls, spec: S) -> FitSettings:
        """Return what the head is fitted with."""

    @classmethod
    @abstractmethod
    def weights_file(cls, spec: S) -> str | None:
        """Return the file of the fitted head, or None."""

    @torch.no_grad()
    def __call__(self, scene: Scene, omega: Frames, generator: torch.Generator) -> LatentFrames:
        """Return the latents of Ω, frame by frame; nothing is random.

        Raises:
            UserError: the head was fitted on another memory or another head's spec.
        """
        head = self._head(scene)
        start = scene.history.start
        frames = omega.to(start.device).split(1, dim=1)
        latents = [head(scene.memory, frame, start, scene.size) for frame in frames]
        return LatentFrames(latents=torch.cat(latents, dim=2))

    def _head(self, scene: Scene) -> ProbeHead:
        if self.fitted is None:
            geometry = scene.backbone.geometry
            check_header(self.path, self.header, memory_layout(geometry, scene.memory))
            head = type(self).build_head(self.spec, geometry)
            if differing(self.state, head.state_dict()):
                raise UserError(
                    f"{self.path} is of another head: give the probe the spec it was fitted with"
                )
            head.load_state_dict(self.state)
            self.fitted = head.eval().to(scene.text.embeddings.device)
        return self.fitted


def memory_layout(geometry: Geometry, memory: Memory) -> dict[str, Any]:
    """Return what a head depends on: the width of tokens, channels of a latent, names of parts."""
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


def check_header(path: Path, header: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a head that was fitted on another memory: UserError."""
    for key, value in expected.items():
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


@frozen(eq=False, kw_only=True)
class FittedProbe:
    """A fitted head.

    Attributes:
        head: in evaluation, on the model's device.
        loss: mean squared error over the last tenth of the steps.
        spread: mean square of the targets there, which is the loss of an answer of zeros.
        header: what its file says.
    """

    head: ProbeHead
    loss: float
    spread: float
    header: dict[str, Any]

    @property
    def explained(self) -> float:
        """Share of the targets' mean square that the head gives back: 1 is all, 0 nothing."""
        return 1 - self.loss / self.spread


def probe_class(spec: RetrieverSpec) -> type[FittedRetriever[RetrieverSpec]]:
    """Return the class of a probe's spec: UserError where the spec is of another retriever."""
    cls = registry().load(spec)
    if not issubclass(cls, FittedRetriever):
        raise UserError(f"{registry().find(spec).name} has no head to fit: it is no probe")
    probe: type[FittedRetriever[RetrieverSpec]] = cls
    return probe


def fit_probe(
    model: Model, store: Store, spec: RetrieverSpec, *, progress: Report | None = None
) -> FittedProbe:
    """Fit a head on the memories of clean windows; the model is left as it is.

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
    cls = probe_class(spec)
    settings = cls.fit_settings(spec)
    check_fits(experiment, store, compressor_needs(experiment).rates)
    device = next(model.backbone.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        head = cls.build_head(spec, model.backbone.geometry).to(device)
    errors, layout = _train(model, store, head, settings, progress)
    last = errors[-max(1, len(errors) // 10) :]
    loss, spread = (statistics.fmean(column) for column in zip(*last, strict=True))
    header = layout | _header(model, store, spec, loss, spread)
    return FittedProbe(head=head.eval(), loss=loss, spread=spread, header=header)


def check_target(path: Path) -> None:
    """Refuse, before a head is fitted, a file that it could not be written to.

    Raises:
        UserError: as `check_out_file`; or there is a file that is no probe.
    """
    check_out_file(path)
    if path.exists():
        try:
            read_probe(path)
        except UserError as error:
            raise UserError(f"--out {path} is there and no probe: name another file") from error


def write_probe(path: Path, fitted: FittedProbe) -> Path:
    """Write a head, whole or not at all, and return its path."""
    write_tensors(path, fitted.head.state_dict(), fitted.header)
    return path


def _train(
    model: Model, store: Store, head: ProbeHead, settings: FitSettings, progress: Report | None
) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """Fit `head`; return loss and spread of every step, and the memory's layout."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.rate, betas=(0.9, 0.99))
    errors: list[tuple[float, float]] = []
    layout: dict[str, Any] = {}
    head.train()
    for step, batch in enumerate(_batches(model, store, settings)):
        memory = _memory_of(model, batch)
        if not step:
            layout = memory_layout(model.backbone.geometry, memory)
            head.calibrate(memory)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * _rate_share(step, settings.steps)
        draws = Draws.of(settings.seed, step, batch.places, "probe")
        errors.append(_step(head, optimizer, batch, memory, draws))
        if progress:
            progress(step + 1, settings.steps, f"loss {errors[-1][0]:.4f} of {errors[-1][1]:.4f}")
    return errors, layout


def _batches(model: Model, store: Store, settings: FitSettings) -> Iterator[Batch]:
    train = attrs.evolve(
        model.experiment.train, batch=settings.batch, accumulate=1, seed=settings.seed, crop=(0, 0)
    )
    needs = compressor_needs(model.experiment)
    windows = WindowSampler.of(store, model.backbone.geometry, train, needs)
    dataset = WindowBatches(store, windows, needs, settings.steps)
    device = next(model.backbone.parameters()).device
    return (dataset[step].to(device) for step in range(settings.steps))


@torch.no_grad()
def _memory_of(model: Model, batch: Batch) -> Memory:
    training = model.encoder.training
    memory: Memory = model.encoder.eval()(batch.history)
    model.encoder.train(training)
    return memory


def _step(
    head: ProbeHead,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    memory: Memory,
    draws: Draws,
) -> tuple[float, float]:
    """Train the head on random frames of a batch; return the loss and the targets' mean square."""
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
    """Return the latents of Ω `[B, K]` of each sample, `[B, C, K, H, W]`, float32."""
    rows = torch.arange(len(omega), device=omega.device)[:, None]
    by_time = rearrange(latents, "b c t h w -> b t c h w")
    return rearrange(by_time[rows, omega], "b k c h w -> b c k h w").float()


def _rate_share(step: int, steps: int) -> float:
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
        "spec": config.to_json(spec),
        "encoder": digest.hexdigest()[:16],
        "data": str(store.root),
        "loss": loss,
        "spread": spread,
    }
