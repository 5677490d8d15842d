"""Stage II on unseen clips: what the memory of a past does to the loss of what follows, by run.

    python -m longtake.experiments.future pretrained=runs/second fresh=runs/second-fresh \
        frozen=runs/second-frozen --data stores/val --out future

cuts every clip of a store once into a past and the target that follows, as `measure` does, and
asks each run for the loss of the target (Eq. 4): with the memory of the past, with a window of the
newest latents alone, with nothing, and with another clip's memory. All runs and memories see the
same cuts, times and noise, so that differences are paired by clip; the first run is compared with
every other one. A run is a folder, a checkpoint, an exported bundle or a shipped name, as it is or
with a name for it before `=`. One that is Stage I alone may stand beside; the first of Stage II
says how clips are cut.

Writes `future.json` and `future.md`, which says what holds, fails or is open. Exit 2: bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from math import lcm
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from ..core.cli.options import find_run
from ..core.data.store import Store
from ..core.errors import UserError
from ..core.experiment import Experiment
from ..core.measure.continuations import Alike, ClipContinuation, measure_continuations
from ..core.measure.prepare import MeasureSetup, evaluating
from ..core.measure.result import Interval, interval
from ..core.model import compressor_needs
from ..core.plugin_errors import exit_code
from ..core.registry import build
from ..core.tools.device import pick_device
from ..core.tools.files import check_out_folder
from ..core.tools.progress import progress_bar
from ..core.tools.words import counted
from ..core.train.checkpoint import is_checkpoint, load_run, read_run, step_of
from ..core.train.past import PastEncoder
from ..plugins.compressors.specs import Window
from .common import command_line
from .returns.command import signed_interval, write_results
from .returns.models import check_same

MEMORY, WINDOW, NONE, OTHER = "memory", "window", "none", "another's memory"
WAYS = (MEMORY, WINDOW, NONE, OTHER)
LATENTS = 3  # of the window (method.md §5)
HOLDS, FAILS, OPEN = "holds", "fails", "open"


@frozen(kw_only=True)
class Subject:
    """A run that is asked.

    Attributes:
        name: in results.
        text: as it was named on the command line.
        experiment: of it.
        steps: that its checkpoint has trained in its own stage; None: not known.
    """

    name: str
    text: str
    experiment: Experiment
    steps: int | None

    def facts(self) -> dict[str, Any]:
        """Return what is reported of it."""
        finetune = self.experiment.finetune
        return {
            "name": self.name,
            "run": self.text,
            "experiment": self.experiment.name,
            "stage": 1 if finetune is None else 2,
            "start": None if finetune is None else finetune.start,
            "encoder": None if finetune is None else finetune.encoder,
            "steps": self.steps,
        }


@frozen(kw_only=True)
class ClipLosses:
    """The losses of one clip's future.

    Attributes:
        name: of the clip.
        past, target: seconds of both.
        losses: by run and way; a way that a clip has not is left out.
    """

    name: str
    past: float
    target: float
    losses: Mapping[str, Mapping[str, float]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and return the exit code."""
    parser = command_line("future", __doc__)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="one or more runs")
    parser.add_argument("--data", type=Path, required=True, help="a store of unseen clips")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--draws", type=int, help="of time and noise a clip; default: the run's")
    parser.add_argument("--window", type=int, default=LATENTS, help="latents of the window alone")
    args = parser.parse_args(arguments)
    try:
        measure_future(args.runs, args.data, args.out, draws=args.draws, window=args.window)
    except Exception as error:  # a plugin may raise anything
        return exit_code(error, "future")
    print(args.out / "future.md")
    return 0


def measure_future(
    runs: Sequence[str], data: Path, out: Path, *, draws: int | None = None, window: int = LATENTS
) -> dict[str, Any]:
    """Ask all runs for the loss of what follows, write the results and return them.

    Args:
        runs: `RUN` or `NAME=RUN`; the first is compared with every other one.
        data: a store of clips that none has trained on.
        out: folder of the results.
        draws: of time and noise a clip; None: what the first run measures with.
        window: latents of the window alone.

    Raises:
        UserError: as `find_subjects`; a number is too small, no clip can be cut, or `out` cannot
            be written.
    """
    check_out_folder(out)
    for option, value in (("--draws", draws), ("--window", window)):
        if value is not None and value < 1:
            raise UserError(f"{option} {value}: 1 or more")
    subjects, store = find_subjects(runs), Store.open(data)
    first = next(s.experiment for s in subjects if s.experiment.finetune is not None)
    rates = [rate for s in subjects for rate in compressor_needs(s.experiment).rates]
    alike = Alike(
        period=lcm(*(rate.time for rate in rates)),
        train=first.train,
        draws=draws or first.measure.draws,
    )
    asked = {s.name: _ask(s, store, first, alike, window) for s in subjects}
    clips = _joined(asked, store)
    if not clips:
        raise UserError(
            f"{data}: no clip has room for the shortest past and target of {first.name}"
        )
    result = summary(subjects, clips)
    described = {
        "store": str(data), "draws": alike.draws, "window": window, "period": alike.period,
        "past": list(_finetune(first).past), "target": list(_finetune(first).target),
        "runs": [s.facts() for s in subjects],
    }  # fmt: skip
    rows = [attrs.asdict(clip) for clip in clips]
    text = page(described, result, len(store.records))
    return write_results(out / "future", described | result | {"clips": rows}, text)


def find_subjects(runs: Sequence[str]) -> list[Subject]:
    """Return the runs that are named, all known to fit each other; none is loaded.

    Raises:
        UserError: there is no such run, one has no memory, none is of Stage II, two have one name,
            or they are not of one codec and shapes.
    """
    subjects: list[Subject] = []
    for text in runs:
        name, _, place = text.rpartition("=")
        folder = find_run(place)
        experiment, checkpoint = read_run(folder)
        given = folder.absolute()
        own = given.parent.name if is_checkpoint(given) else given.stem
        steps = step_of(checkpoint) if is_checkpoint(checkpoint) else None
        subject = Subject(name=name or own, text=place, experiment=experiment, steps=steps)
        if not experiment.remembers:
            raise UserError(f"{place} has no memory to ask")
        if subject.name in [other.name for other in subjects]:
            raise UserError(f"{text}: another run is called {subject.name}; name it: NAME=RUN")
        if subjects:
            check_same(subjects[0].text, subjects[0].experiment, place, experiment)
        subjects.append(subject)
    if all(subject.experiment.finetune is None for subject in subjects):
        raise UserError(f"{subjects[0].text} is Stage I: one run of `longtake finetune` is wanted")
    return subjects


def _finetune(experiment: Experiment) -> Any:
    assert experiment.finetune is not None
    return experiment.finetune


def _ask(
    subject: Subject, store: Store, first: Experiment, alike: Alike, window: int
) -> list[ClipContinuation]:
    """Return how a run's clips go on."""
    device = pick_device()
    model = load_run(find_run(subject.text)).to(device)
    setup = MeasureSetup.build(model, store, seed=first.measure.seed)
    newest = build(Window(latents=window), model.backbone.fit()).to(device)
    stage = attrs.evolve(subject.experiment, finetune=first.finetune)
    found = []
    with evaluating(model), progress_bar(subject.name) as report:
        ends = PastEncoder.of(stage, store, device)
        for clip in measure_continuations(
            setup, _finetune(first), ends, alike=alike, window=newest
        ):
            found.append(clip)
            report(len(found), len(setup.records()), clip.record.name)
    return found


def _joined(asked: Mapping[str, Sequence[ClipContinuation]], store: Store) -> list[ClipLosses]:
    """Return the losses of all runs clip by clip, which all of them cut alike."""
    step = store.stride / store.fps
    rows = []
    for each in zip(*asked.values(), strict=True):
        clip = each[0]
        assert all((c.record.id, c.past, c.target) == (clip.record.id, clip.past, clip.target)
                   for c in each)  # fmt: skip
        losses = {name: _by_way(c) for name, c in zip(asked, each, strict=True)}
        rows.append(
            ClipLosses(
                name=clip.record.name,
                past=clip.past * step,
                target=clip.target * step,
                losses=losses,
            )
        )
    return rows


def _by_way(clip: ClipContinuation) -> dict[str, float]:
    losses = {
        MEMORY: clip.losses.true, WINDOW: clip.window, NONE: clip.losses.none,
        OTHER: clip.losses.shuffled,
    }  # fmt: skip
    return {way: loss for way, loss in losses.items() if loss is not None}


def summary(subjects: Sequence[Subject], clips: Sequence[ClipLosses]) -> dict[str, Any]:
    """Return the losses over clips, their differences paired by clip, and what is claimed of them.

    Differences are above 0 where the memory, or the first run, is better.
    """
    names = [subject.name for subject in subjects]

    def losses(name: str, way: str) -> list[float | None]:
        return [clip.losses[name].get(way) for clip in clips]

    first, rest = names[0], names[1:]
    over = {name: {way: _mean(losses(name, way)) for way in WAYS} for name in names}
    memory = {
        name: {way: _apart(losses(name, way), losses(name, MEMORY)) for way in WAYS[1:]}
        for name in names
    }
    runs = {
        name: {way: _apart(losses(name, way), losses(first, way)) for way in WAYS} for name in rest
    }
    known = {subject.name: subject.steps for subject in subjects}
    equal = {name: known[name] is not None and known[name] == known[first] for name in rest}
    return {
        "clips_measured": len(clips),
        "loss": _plain(over),
        "above_memory": _plain(memory),
        "above_first": _plain(runs),
        "equal_steps": equal,
        "claims": claims(names, memory, runs, equal),
    }


def _mean(values: Sequence[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    return interval(known) if known else None


def _apart(more: Sequence[float | None], less: Sequence[float | None]) -> Interval | None:
    """Return how much greater one loss is than another over the clips that have both."""
    pairs = zip(more, less, strict=True)
    return _mean([a - b if a is not None and b is not None else None for a, b in pairs])


def _plain(table: Mapping[str, Mapping[str, Interval | None]]) -> dict[str, Any]:
    return {
        name: {way: None if x is None else attrs.asdict(x) for way, x in row.items()}
        for name, row in table.items()
    }


def claims(
    names: Sequence[str],
    memory: Mapping[str, Mapping[str, Interval | None]],
    runs: Mapping[str, Mapping[str, Interval | None]],
    equal: Mapping[str, bool],
) -> list[dict[str, str]]:
    """Return what is claimed, and whether it holds, fails or is open.

    Args:
        names: of the runs.
        memory: how much greater the loss of each way is than with memory, by run.
        runs: how much greater the loss of each run is than the first one's, by way.
        equal: whether a run has trained as many steps as the first.
    """
    found = [
        {"claim": f"{name}: memory is better than {way}", "state": judge(memory[name][way])}
        for name in names
        for way in WAYS[1:]
    ]
    for name, row in runs.items():
        steps = "at equal steps" if equal[name] else "though not of equal steps"
        claim = f"{names[0]} with memory is better than {name} with its own, {steps}"
        found.append({"claim": claim, "state": judge(row[MEMORY])})
    return found


def judge(figure: Interval | None) -> str:
    """Return whether a difference is above 0 beyond its interval, below it, or neither."""
    if figure is None or figure.low is None or figure.high is None:
        return OPEN
    if figure.low > 0:
        return HOLDS
    return FAILS if figure.high < 0 else OPEN


def page(described: Mapping[str, Any], result: Mapping[str, Any], total: int) -> str:
    """Return the page: what was asked and how, losses, their differences, and the claims."""
    names = [run["name"] for run in described["runs"]]
    blocks = [
        "# The loss of the future",
        "Flow-matching loss (Eq. 4) of the target behind a past, mean over clips [95 % interval "
        "over clips, paired where it is a difference]. Differences are above 0 where the memory, "
        "or the first run, is better.",
        _table("loss", ["run", *WAYS], names, result["loss"], WAYS, _plain_interval),
        _table(
            "greater than with memory", ["run", *WAYS[1:]], names, result["above_memory"],
            WAYS[1:], signed,
        ),
    ]  # fmt: skip
    if len(names) > 1:
        title = f"greater than that of {names[0]}"
        rows, head = result["above_first"], ["run", *WAYS]
        blocks.append(_table(title, head, names[1:], rows, WAYS, signed))
    blocks.append("\n".join(f"- **{c['state']}**: {c['claim']}" for c in result["claims"]))
    blocks.append("\n".join(f"- {line}" for line in _notes(described, result, total)))
    return "\n\n".join(blocks) + "\n"


def signed(figure: Mapping[str, Any]) -> str:
    """Return a difference of losses with its interval."""
    return signed_interval(figure, digits=4)


def _plain_interval(figure: Mapping[str, Any]) -> str:
    if figure["low"] is None:
        return f"{figure['mean']:.4f}"
    return f"{figure['mean']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]"


def _table(
    title: str, head: Sequence[str], names: Sequence[str], rows: Mapping[str, Any],
    ways: Sequence[str], text: Any,
) -> str:  # fmt: skip
    def cells(name: str) -> list[str]:
        return ["–" if (x := rows[name][way]) is None else text(x) for way in ways]

    lines = [list(head), ["---", *["---:"] * len(ways)], *([name, *cells(name)] for name in names)]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _notes(described: Mapping[str, Any], result: Mapping[str, Any], total: int) -> list[str]:
    runs = [
        f"`{run['name']}` is {run['run']} ({run['experiment']}, "
        + ("Stage I" if run["stage"] == 1 else f"encoder {run['encoder']}, start {run['start']}")
        + (f", {counted(run['steps'], 'step')}" if run["steps"] is not None else "")
        + ")."
        for run in described["runs"]
    ]
    past, target = (" to ".join(f"{s:g}" for s in described[name]) for name in ("past", "target"))
    return [
        *runs,
        f"{counted(result['clips_measured'], 'clip')} of the {total} in {described['store']}, each "
        f"cut once, as late as it can be: past of {past} s, target of {target} s; "
        f"{counted(described['draws'], 'draw')} of time and noise a clip, the same for all.",
        f"`{WINDOW}` is the newest {counted(described['window'], 'latent')} of the past as the "
        f"DiT's own tokens, in place of the memory; `{OTHER}` has the tokens of the next clip that "
        "is cut alike, which not every clip has.",
    ]


if __name__ == "__main__":
    sys.exit(main())
