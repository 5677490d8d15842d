"""The models that a probe asks, all known to fit each other, and their clips as a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from attrs import field, frozen

from ...core.cache.cache import cache
from ...core.cli.options import find_run
from ...core.data.store import Store
from ...core.errors import UserError
from ...core.experiment import Experiment
from ...core.model import Model, compressor_needs
from ...core.tools.device import pick_device
from ...core.tools.progress import progress_bar
from ...core.train.checkpoint import load_run, read_run
from ...plugins.compressors.specs import Window
from ..common import say_left_out
from .ask import ANSWERS

SAME_PARTS = {"codec": "codec", "text_encoder": "text encoder", "geometry": "shapes"}


@frozen(eq=False, kw_only=True)
class ProbedModels:
    """The models of a probe.

    Attributes:
        own: answers from its memory, from a window, from both and from nothing.
        window: was trained with a sliding window as its memory; None: there is none.
        beside: further models, each with a memory of its own, by the names of their answers.
    """

    own: Model
    window: Model | None = None
    beside: Mapping[str, Model] = field(factory=dict)

    @property
    def every(self) -> tuple[Model, ...]:
        """All of them."""
        return (self.own, *([self.window] if self.window else []), *self.beside.values())


def load_models(run: str, window: str | None = None, beside: Sequence[str] = ()) -> ProbedModels:
    """Return the models that are asked; none is loaded before all are known to fit.

    Args:
        run: a run, a checkpoint, or shipped weights by name.
        window: the same, trained with `window` as its memory; None: none.
        beside: further ones; their answers are named after their folders.

    Raises:
        UserError: there is no such run, one has no memory, `window` has another, or they are not
            of one codec and shapes, or two answers would have one name.
    """
    own = read_run(find_run(run))[0]
    if not own.remembers:
        raise UserError(f"{run} has no memory to probe")
    if window is not None:
        other = read_run(find_run(window))[0]
        if len(other.compressors) != 1 or not isinstance(other.compressors[0], Window):
            raise UserError(
                f"--window-run {window}: it was not trained with the `window` compressor alone"
            )
        check_same(run, own, f"--window-run {window}", other)
    names: dict[str, str] = {}
    for text in beside:
        name, other = Path(text).name, read_run(find_run(text))[0]
        if name in (*ANSWERS, *names):
            raise UserError(f"--beside {text}: another answer is called {name}")
        if not other.remembers:
            raise UserError(f"--beside {text}: it has no memory to probe")
        check_same(run, own, f"--beside {text}", other)
        names[name] = text
    return ProbedModels(
        own=_load(run),
        window=None if window is None else _load(window),
        beside={name: _load(text) for name, text in names.items()},
    )


def _load(text: str) -> Model:
    return load_run(find_run(text)).to(pick_device())


def check_same(run: str, own: Experiment, option: str, other: Experiment) -> None:
    """Raise UserError for a run that would see other latents than the first."""
    if type(own.backbone) is not type(other.backbone):
        raise UserError(f"{option}: its backbone is another than that of {run}")
    for part, words in SAME_PARTS.items():
        if getattr(own.backbone, part) != getattr(other.backbone, part):
            raise UserError(f"{option}: the {words} of its backbone are not those of {run}")


def cached_clips(models: ProbedModels, out: Path) -> Store:
    """Return the store of the clips in `out/clips`, with all that the models read of them."""
    experiment = models.own.experiment
    spec = attrs.evolve(experiment.cache, mirror=False, reverse=False, speeds=(), pixels=True)
    needs = [compressor_needs(model.experiment).rates for model in models.every]
    with progress_bar("cache") as report:
        result = cache(
            attrs.evolve(experiment, cache=spec),
            out / "clips",
            out / "store",
            rates=frozenset().union(*needs),
            pixels=True,
            device=pick_device(),
            progress=report,
        )
    say_left_out(result)
    return Store.open(out / "store")
