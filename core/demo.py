"""What `longtake demo` does: all verbs on one clip, from video to a report, on a CPU in minutes.

The clip is cached and asked of the memory that ships, which never saw it; then the memory is
trained on the clip for a few steps and asked again. Training as in a long run spends so few steps
on more than is then measured: batches that drop memory or text, and times other than t = 1, where
one-step retrieval starts. Here every step reads memory and text at t = 1, with AdamW at a low rate.
Where weights of Stage II ship, the clip goes on at the end (`demo_continuation`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen
from markupsafe import Markup

from .cache.cache import cache
from .data.store import Store
from .demo_continuation import DemoContinuation, can_go_on, go_on
from .experiment import Experiment, TrainSpec
from .measure.measure import measure
from .measure.prepare import MeasureSetup
from .measure.result import MeasureResult
from .measure.strips import make_sliders, make_strips
from .measure.verdict import as_data
from .model import Model, all_needs, learned_retriever
from .pages.charts import CssColours, svg_chart
from .pages.report import Page, write_report
from .registry import registry
from .tools.device import flushed_denormals, pick_device
from .tools.files import check_out_folder, disk_errors, read_json_lines
from .tools.progress import Report
from .tools.words import counted
from .train.checkpoint import load_run, read_run
from .train.log import METRICS
from .train.pretrain import pretrain
from .video.builtin_clip import CREDITS, write_builtin_clip

SHOWN_METRICS = 2  # more would take longer than the training
ALL, ADAPTERS = 1e-5, 3e-4  # rates: of a DiT trained whole, of the encoder and LoRA of scale 1
BATCH = 4
NEVER = 10**6  # steps, in so short a run

Say = Callable[[str], None]


@frozen(kw_only=True)
class DemoResult:
    """What a demo gave.

    Attributes:
        clip: the video; `steps` the training steps on it.
        before: measured with the weights it began from, which never saw the clip.
        after: measured after training on the clip itself; None without steps.
        losses: of the training steps.
        continuation: how the clip went on; None: no weights of Stage II, or the clip is too short.
        report: the page.
    """

    clip: Path
    steps: int
    before: MeasureResult
    after: MeasureResult | None
    losses: tuple[float, ...] = ()
    continuation: DemoContinuation | None = None
    report: Path

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "clip": str(self.clip),
            "training_steps_on_the_clip": self.steps,
            "before_training_on_it": as_data(self.before),
            "after_training_on_it": None if self.after is None else as_data(self.after),
            "losses": list(self.losses),
            "continuation": None if self.continuation is None else self.continuation.to_json(),
            "report": str(self.report),
        }

    def lines(self) -> list[str]:
        """Return the last lines to print: context length, and figures against the floors."""
        lines = [_context(self.before), ""]
        lines += ["from the weights that ship, which never saw this clip:", *_figures(self.before)]
        if self.after is not None:
            lines += [f"after {self.steps} training steps on this very clip:"]
            lines += [*_figures(self.after), describe_change(self.before, self.after, self.losses)]
        lines += [] if self.continuation is None else self.continuation.lines()
        return [*lines, f"report: {self.report}"]


@flushed_denormals()  # before torch starts threads, which then flush them in training, too
def run_demo(
    video: Path | None, out: Path, weights: Path, *, steps: int, say: Say, progress: Report,
    second: Path | None = None,
) -> DemoResult:  # fmt: skip
    """Run the demo into a folder and return what it gave.

    Args:
        video: a video of the user's; None makes the built-in clip.
        out: the folder; what is there from an earlier demo is replaced.
        weights: a run or shipped weights to begin from.
        steps: training steps on the clip before it is measured a second time; 0 for none.
        say: called with a line before each part.
        progress: called with done, total and a note during long work.
        second: a run of Stage II, with which the clip goes on; None: it does not.

    Raises:
        UserError: the video cannot be used, or the folder not be written.
    """
    check_out_folder(out)
    experiment = demo_experiment(read_run(weights)[0])
    clip = video or _write_clip(out, say)
    store = _cache_clip(experiment, clip, out / "store")
    say(f"1. cached {clip.name}: {_size_of(store)}")
    setup = _setup(weights, experiment, store)
    say("2. asking the memory that ships, which never saw this clip, for all of its frames ...")
    before = measure(setup, run=str(weights), progress=progress)
    after: MeasureResult | None = None
    losses: tuple[float, ...] = ()
    if steps:
        more = f"{counted(steps, 'step')} more"
        say(f"3. training {more} on this very clip, to show training at work ...")
        run = out / "run"
        shutil.rmtree(run, ignore_errors=True)
        spec, start = clip_training(experiment, store, steps), read_run(weights)[1]
        pretrain(spec, store.root, run, start=start, progress=progress)
        log = read_json_lines(run / METRICS)
        losses = tuple(float(line["loss"]) for line in log if "loss" in line)
        setup = _setup(run, experiment, store)
        after = measure(setup, run=str(run), progress=progress)
    continuation = None
    if second is not None and can_go_on(store.records[0]):
        say(f"{4 if steps else 3}. going on with the clip, out of the memory of its past ...")
        continuation = go_on(second, clip, store.records[0], out / "take", progress)
    notes = _report_notes(before, after, losses, own_clip=video is not None)
    further = () if continuation is None else (continuation.strip,)
    page = Page(
        strips=(*make_strips(setup), *further),
        sliders=make_sliders(setup),
        title="longtake demo",
        notes=notes,
    )
    report = write_report(after or before, page, out / "report.html")
    return DemoResult(
        clip=clip, steps=steps, before=before, after=after, losses=losses, report=report,
        continuation=continuation,
    )  # fmt: skip


def demo_experiment(experiment: Experiment) -> Experiment:
    """Return the experiment as the demo measures it: one clip of up to 20 s, the first metrics.

    Of the retrievers that read memory only the first is left, with all floors.
    """
    floors = [spec for spec in experiment.retrievers if not registry().load(spec).learned]
    return attrs.evolve(
        experiment,
        cache=attrs.evolve(experiment.cache, mirror=False),
        measure=attrs.evolve(experiment.measure, seconds=20.0, long_seconds=0.0, draws=2),
        metrics=experiment.metrics[:SHOWN_METRICS],
        retrievers=(learned_retriever(experiment), *floors),
    )


def _write_clip(out: Path, say: Say) -> Path:
    """Write the built-in clip, where it is not there yet, and return its path."""
    path = out / "longtake-demo-clip.mp4"
    if not path.exists():
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            write_builtin_clip(path)
    say(f"0. a built-in clip of 20 s with cuts that return: {path}")
    return path


def _cache_clip(experiment: Experiment, clip: Path, out: Path) -> Store:
    """Cache the clip afresh and return the store."""
    shutil.rmtree(out, ignore_errors=True)
    needs = all_needs(experiment)
    cache(experiment, clip, out, rates=needs.rates, pixels=True, device=pick_device())
    return Store.open(out)


def _size_of(store: Store) -> str:
    """Return the size of the store's clip in words."""
    record = store.records[0]
    return (
        f"{record.frames / record.fps:.1f} s at {record.fps:g} fps, {record.placement}, "
        f"{record.latents} latent frames of {record.height}x{record.width}"
    )


def _setup(run: Path, experiment: Experiment, store: Store) -> MeasureSetup:
    """Return the weights of a run, to be measured on this machine's device as the demo does."""
    loaded = load_run(run)
    model = Model(experiment, loaded.backbone, loaded.encoder).to(pick_device())
    return MeasureSetup.build(model, store)


def clip_training(experiment: Experiment, store: Store, steps: int) -> Experiment:
    """Return the experiment with a training of `steps` steps on the store's only clip.

    Weights ship with the number type that they were trained in; here it is what this machine is
    fast in.
    """
    record = store.records[0]
    seconds = min(experiment.measure.seconds, record.frames / record.fps)
    train = attrs.evolve(
        experiment.train,
        steps=steps,
        batch=BATCH,
        accumulate=1,
        seconds=(seconds, seconds),
        optimizer="adamw",
        crop=(0, 0),
        rate=learning_rate(experiment.train),
        warmup=3,
        decay=0.5,
        ema=0.0,
        memory_dropout=0.0,
        text_dropout=0.0,
        pure=1.0,
        precision="auto",
        log_every=1,
        gain_every=NEVER,
        save_every=NEVER,
        save_minutes=0.0,
        keep=1,
    )
    return attrs.evolve(experiment, train=train)


def learning_rate(train: TrainSpec) -> float:
    """Return the learning rate: what adapters do grows with their scale, alpha / rank."""
    if train.trains != "lora":
        return ALL if train.trains == "all" else ADAPTERS
    return ADAPTERS / max(1.0, train.adapter.alpha / train.adapter.rank)


def _context(result: MeasureResult) -> str:
    """Return the context length before and after compression, in words."""
    row = result.clips[0]
    return (
        f"{row.uncompressed:,} tokens uncompressed, {row.tokens:,} as memory "
        f"({row.uncompressed / row.tokens:.1f}× shorter) for {row.seconds:.1f} s"
    )


def _figures(result: MeasureResult) -> list[str]:
    """Return one line a retriever: its figures on the clip, unmasked."""
    lines = []
    for one in result.retrievals:
        figures = [
            f"{metric.title} {one.unmasked.figures[metric.name].mean:.2f} {metric.unit}".strip()
            for metric in result.metrics
        ]
        lines.append(f"  {one.name:<24} {one.kind:<8} {', '.join(figures)}")
    return lines


def describe_change(before: MeasureResult, after: MeasureResult, losses: Sequence[float]) -> str:
    """Return what training on the clip did to the main retriever, in words; a miss, too."""
    metric = before.metrics[0]
    old, new = (
        result.retrieval(result.main).unmasked.figures[metric.name].mean
        for result in (before, after)
    )
    better = metric.merit(new) > metric.merit(old)
    verdict = "training helped" if better else "so few steps did not help on this clip"
    unit = f" {metric.unit}" if metric.unit else ""
    digits = 2 if metric.unit else 3
    return (
        f"{before.main}: {metric.title} {old:.{digits}f} → {new:.{digits}f}{unit} "
        f"({new - old:+.{digits}f}), loss {loss_trend(losses)}: {verdict}"
    )


def loss_trend(losses: Sequence[float]) -> str:
    """Return the mean loss of the first and of the last quarter of the steps, in words."""
    quarter = max(1, len(losses) // 4)
    first, last = (sum(part) / quarter for part in (losses[:quarter], losses[-quarter:]))
    return f"{first:.3f} → {last:.3f}"


def _report_notes(
    before: MeasureResult, after: MeasureResult | None, losses: Sequence[float], *, own_clip: bool
) -> tuple[str, ...]:
    """Return the notes of the report; `own_clip`: it is the user's, not the built-in one."""
    notes: list[str] = []
    if after is None:
        notes.append("The memory has never seen this clip.")
    else:
        notes.append(
            f"The memory was trained for {counted(len(losses), 'step')} on this very clip before "
            f"it was measured. {describe_change(before, after, losses)}."
        )
        notes.append(_loss_chart(losses))
    if not own_clip:
        credits = "; ".join(f"{c.title} ({c.author}, {c.licence})" for c in CREDITS)
        notes.append(f"The clip is made from photographs: {credits}.")
    return tuple(notes)


def _loss_chart(losses: Sequence[float]) -> Markup:
    """Return the loss by training step as inline SVG, with the mean of each five steps on it."""

    def draw(axes: Any, colours: CssColours) -> None:
        steps = list(range(1, len(losses) + 1))
        line = {"marker": "o", "markersize": 3.0, "linewidth": 1.0}
        axes.plot(steps, list(losses), color=colours("--muted"), **line)
        means = [sum(losses[max(0, i - 5) : i]) / len(losses[max(0, i - 5) : i]) for i in steps]
        axes.plot(steps, means, color=colours("--s0"), linewidth=2.0)

    title = "loss by training step on this clip; bold: mean of the last five"
    return Markup("{}<br>{}").format(title.capitalize(), svg_chart(draw, title, "training step"))
