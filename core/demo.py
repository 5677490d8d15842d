"""The `demo` verb: the whole story on one clip, from video to a report, on a CPU in minutes."""

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
from .experiment import Experiment, TrainSpec
from .measure.measure import measure
from .measure.result import MeasureResult
from .measure.strips import make_scrubs, make_strips
from .measure.verdict import as_data
from .model import Model, all_needs, learned_retriever
from .pages.charts import Paint, chart
from .pages.report import write_report
from .registry import registry
from .tools.device import pick_device
from .tools.files import disk_errors, read_lines
from .tools.progress import Report
from .train.checkpoint import load_run, read_run
from .train.log import METRICS
from .train.pretrain import pretrain
from .video.builtin_clip import CREDITS, write_builtin_clip

# ⟦core/demo/lesson.py⟧ The demo's lesson: a few training steps on one clip, set so that so few can help. Training as in a long run spends so few steps on more than is then measured: batches that drop memory or text, and times other than t = 1, where one-step retrieval starts. Here every step reads memory and text at t = 1, with AdamW and a gentle rate. Weights ship with the number type that they were trained in; the lesson takes what this machine is fast in.


ALL, ADAPTERS = 1e-4, 3e-4  # rates: of a DiT trained whole, of the encoder and LoRA of scale 1
BATCH = 4
LONG = 10**6  # steps: never in so short a run


def lesson(experiment: Experiment, store: Store, steps: int) -> Experiment:
    """Return the experiment with the training of `steps` steps on the store's only clip."""
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
        rate=gentle(experiment.train),
        warmup=3,
        decay=0.5,
        ema=0.0,
        memory_dropout=0.0,
        text_dropout=0.0,
        pure=1.0,
        precision="auto",
        log_every=1,
        gain_every=LONG,
        save_every=LONG,
        save_minutes=0.0,
        keep=1,
    )
    return attrs.evolve(experiment, train=train)


def gentle(train: TrainSpec) -> float:
    """Return the learning rate: what adapters do grows with their scale, alpha / rank."""
    if train.trains != "lora":
        return ALL if train.trains == "all" else ADAPTERS
    return ADAPTERS / max(1.0, train.adapter.alpha / train.adapter.rank)


def taught(
    experiment: Experiment, store: Store, run: Path, weights: Path, *, steps: int, progress: Report
) -> tuple[Path, tuple[float, ...]]:
    """Train from `weights` on the clip; give the run and the loss of every step."""
    shutil.rmtree(run, ignore_errors=True)
    spec = lesson(experiment, store, steps)
    pretrain(spec, store.root, run, start=read_run(weights)[1], progress=progress)
    lines = read_lines(run / METRICS)
    return run, tuple(float(line["loss"]) for line in lines if "loss" in line)


# ⟦core/demo/words.py⟧ What the demo says: figures, context lengths and the notes of its report.


def figures(result: MeasureResult) -> list[str]:
    """Return one line a retriever: its figures on the clip, unmasked."""
    rows = []
    for found in result.retrievals:
        parts = [
            f"{metric.title} {found.unmasked.figures[metric.name].mean:.2f} {metric.unit}".strip()
            for metric in result.metrics
        ]
        rows.append(f"  {found.name:<24} {found.kind:<8} {', '.join(parts)}")
    return rows


def context(result: MeasureResult) -> str:
    """Return the context length before and after compression."""
    row = result.clips[0]
    return (
        f"{row.uncompressed:,} tokens uncompressed, {row.tokens:,} as memory "
        f"({row.uncompressed / row.tokens:.1f}× shorter) for {row.seconds:.1f} s"
    )


def change(before: MeasureResult, after: MeasureResult, losses: Sequence[float]) -> str:
    """Return what training on the clip did to the first metric of the main retriever; a miss, too."""
    metric = before.metrics[0]
    old, new = (
        found.retrieval(found.main).unmasked.figures[metric.name].mean for found in (before, after)
    )
    better = metric.merit(new) > metric.merit(old)
    verdict = "training helped" if better else "so few steps did not help on this clip"
    unit = f" {metric.unit}" if metric.unit else ""
    digits = 2 if metric.unit else 3
    return (
        f"{before.main}: {metric.title} {old:.{digits}f} → {new:.{digits}f}{unit} "
        f"({new - old:+.{digits}f}), loss {trend(losses)}: {verdict}"
    )


def trend(losses: Sequence[float]) -> str:
    """Return the mean loss of the first and of the last quarter of the steps."""
    part = max(1, len(losses) // 4)
    first, last = (sum(some) / part for some in (losses[:part], losses[-part:]))
    return f"{first:.3f} → {last:.3f}"


def report_notes(
    before: MeasureResult, after: MeasureResult | None, losses: Sequence[float], *, own: bool
) -> tuple[str, ...]:
    """Return the notes of the report; `own`: the clip is the user's, not the built-in one."""
    notes: list[str] = []
    if after is None:
        notes.append("The memory has never seen this clip.")
    else:
        notes.append(
            f"The memory was trained for {len(losses)} steps on this very clip before it was "
            f"measured. {change(before, after, losses)}."
        )
        notes.append(loss_chart(losses))
    if not own:
        credits = "; ".join(f"{c.title} ({c.author}, {c.licence})" for c in CREDITS)
        notes.append(f"The clip is made from photographs: {credits}.")
    return tuple(notes)


def loss_chart(losses: Sequence[float]) -> Markup:
    """Return the loss by training step as inline SVG, with the mean of each five steps on it."""

    def draw(axes: Any, paint: Paint) -> None:
        steps = list(range(1, len(losses) + 1))
        line = {"marker": "o", "markersize": 3.0, "linewidth": 1.0}
        axes.plot(steps, list(losses), color=paint("--muted"), **line)
        means = [sum(losses[max(0, i - 5) : i]) / len(losses[max(0, i - 5) : i]) for i in steps]
        axes.plot(steps, means, color=paint("--s0"), linewidth=2.0)

    title = "loss by training step on this clip; bold: mean of the last five"
    return Markup("{}<br>{}").format(title.capitalize(), chart(draw, title, "training step"))


SHOWN_METRICS = 2  # as many as a story needs; more would take longer than its training

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
        """Return the story as plain data."""
        return {
            "clip": str(self.clip),
            "training_steps_on_the_clip": self.steps,
            "before_training_on_it": as_data(self.before),
            "after_training_on_it": None if self.after is None else as_data(self.after),
            "losses": list(self.losses),
            "report": str(self.report),
        }

    def lines(self) -> list[str]:
        """Return the end of the story: context length, and figures against the floors."""
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
    """Return the experiment as the demo measures it: one clip of up to 20 s, the first metrics."""
    measured = attrs.evolve(experiment.measure, seconds=20.0, long_seconds=0.0, draws=2)
    kept = attrs.evolve(experiment.cache, mirror=False)
    first = experiment.metrics[:SHOWN_METRICS]
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
    """Return the size of the store's clip in words."""
    record = store.records[0]
    return (
        f"{record.frames / record.fps:.1f} s at {record.fps:g} fps, {record.placement}, "
        f"{record.latents} latent frames of {record.height}x{record.width}"
    )


def under(model: Model, experiment: Experiment) -> Model:
    """Return the same weights under another experiment, on this machine's device."""
    return Model(experiment, model.backbone, model.encoder).to(pick_device())


def quick(experiment: Experiment) -> Experiment:
    """Return the experiment with one retriever that reads memory, the first, and the floors."""
    retrievers = [s for s in experiment.retrievers if not registry().load(s).learned]
    first = learned_retriever(experiment)
    return attrs.evolve(experiment, retrievers=(first, *retrievers))
