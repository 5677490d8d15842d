"""The `demo` verb: the whole story on one clip, from video to a report, on a CPU in minutes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from ..data.cache import cache
from ..data.store import Store
from ..device import pick_device
from ..experiment import Experiment
from ..files import disk_errors
from ..measure.measure import measure
from ..measure.report import write_report
from ..measure.result import MeasureResult
from ..measure.scrubs import make_scrubs
from ..measure.strips import make_strips
from ..measure.verdict import as_data
from ..model import Model, all_needs
from ..registry import registry
from ..scene import learned_retriever
from ..train.checkpoint import load_run, read_run
from .clip import write_builtin_clip
from .lesson import taught
from .words import change, context, figures, report_notes

METRICS = 2  # as many as a story needs; more would take longer than its training

Say = Callable[[str], None]
Progress = Callable[[int, int, str], None]


@frozen(kw_only=True)
class Story:
    """What the demo found.

    Attributes:
        clip: the video; `steps` the training steps on it.
        before: measured with the weights it began from, which never saw the clip.
        after: measured after training on the clip itself; None without steps.
        losses: of the training steps.
        report: the page.
    """

    clip: Path
    steps: int
    before: MeasureResult
    after: MeasureResult | None
    losses: tuple[float, ...] = ()
    report: Path

    def to_json(self) -> dict[str, Any]:
        """Give the story as plain data."""
        return {
            "clip": str(self.clip),
            "training_steps_on_the_clip": self.steps,
            "before_training_on_it": as_data(self.before),
            "after_training_on_it": None if self.after is None else as_data(self.after),
            "losses": list(self.losses),
            "report": str(self.report),
        }

    def lines(self) -> list[str]:
        """Give the end of the story: context length, and figures against the floors."""
        told = [context(self.before), "", "from the weights that ship, which never saw this clip:"]
        told += figures(self.before)
        if self.after is not None:
            told += [f"after {self.steps} training steps on this very clip:", *figures(self.after)]
            told += [change(self.before, self.after, self.losses)]
        return [*told, f"report: {self.report}"]


def tell(
    video: Path | None, out: Path, weights: Path, *, steps: int, say: Say, progress: Progress
) -> Story:
    """Run the story into a folder and give what it found.

    Args:
        video: a video of the user's; None makes the built-in clip.
        out: the folder; what is there from an earlier demo is replaced.
        weights: a run or shipped weights to begin from.
        steps: training steps on the clip before it is measured a second time; 0 for none.
        say: called with each line of the story.
        progress: called with done, total and a note during long work.

    Raises:
        UserError: the video cannot be used, or the folder not be written.
    """
    experiment = quick(demo_experiment(read_run(weights)[0]))
    clip = video or built_in(out, say)
    store = cached(experiment, clip, out / "store")
    say(f"1. cached {clip.name}: {described(store)}")
    model = under(load_run(weights), experiment)
    say("2. asking the memory that ships, which never saw this clip, for all of its frames ...")
    before = measure(model, store, run=str(weights), progress=progress)
    after: MeasureResult | None = None
    losses: tuple[float, ...] = ()
    if steps:
        say(f"3. training {steps} steps more on this very clip, to show training at work ...")
        run, losses = taught(
            experiment, store, out / "run", weights, steps=steps, progress=progress
        )
        model = under(load_run(run), experiment)
        after = measure(model, store, run=str(run), progress=progress)
    notes = report_notes(before, after, losses, own=video is not None)
    page = write_report(
        after or before,
        make_strips(model, store),
        out / "report.html",
        scrubs=make_scrubs(model, store),
        title="longtake demo",
        notes=notes,
    )
    return Story(clip=clip, steps=steps, before=before, after=after, losses=losses, report=page)


def demo_experiment(experiment: Experiment) -> Experiment:
    """Give the experiment as the demo measures it: one clip of up to 20 s, the first metrics."""
    measured = attrs.evolve(experiment.measure, seconds=20.0, long_seconds=0.0, draws=2)
    kept = attrs.evolve(experiment.cache, mirror=False)
    first = experiment.metrics[:METRICS]
    return attrs.evolve(experiment, cache=kept, measure=measured, metrics=first)


def built_in(out: Path, say: Say) -> Path:
    """Write the built-in clip, where it is not there yet, and give its path."""
    path = out / "longtake-demo-clip.mp4"
    if not path.exists():
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            write_builtin_clip(path)
    say(f"0. a built-in clip of 20 s with cuts that return: {path}")
    return path


def cached(experiment: Experiment, clip: Path, out: Path) -> Store:
    """Cache the clip afresh and give the store."""
    shutil.rmtree(out, ignore_errors=True)
    needs = all_needs(experiment)
    cache(experiment, clip, out, rates=needs.rates, pixels=True, device=pick_device())
    return Store.open(out)


def described(store: Store) -> str:
    """Give the size of the store's clip in words."""
    record = store.records[0]
    return (
        f"{record.frames / record.fps:.1f} s at {record.fps:g} fps, {record.placement}, "
        f"{record.latents} latent frames of {record.height}x{record.width}"
    )


def under(model: Model, experiment: Experiment) -> Model:
    """Give the same weights under another experiment, on this machine's device."""
    return Model(experiment, model.backbone, model.encoder).to(pick_device())


def quick(experiment: Experiment) -> Experiment:
    """Give the experiment with one retriever that reads memory, the first, and the floors."""
    retrievers = [s for s in experiment.retrievers if not registry().load(s).learned]
    first = learned_retriever(experiment)
    return attrs.evolve(experiment, retrievers=(first, *retrievers))
