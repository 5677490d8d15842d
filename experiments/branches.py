"""What each branch of an encoder is worth: losses with one of the two switched off at inference.

    python -m longtake.experiments.branches tiny-wan-2x2x2 --data stores/val --out branches

asks a run's memory for random frames of each clip's clean history, as `measure` does for
`memory_gain`: with both branches, without HR, without LR, and with no memory. All see the same
frames, times and noise, so that differences are paired by clip. Nothing is trained again, so this
says what a trained memory relies on, not what an encoder of one branch could learn
(`tiny-wan-2x2x2-only-lr`, `-without-lr`).

Writes `branches.json` and `branches.md`. Exit 2: bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from ..core.cli.options import find_run
from ..core.data.store import Record, Store
from ..core.errors import UserError
from ..core.measure.prepare import MeasureSetup, evaluating
from ..core.measure.quality import clean_query
from ..core.measure.result import Interval, interval
from ..core.model import Model
from ..core.plugin_errors import exit_code
from ..core.tools.device import pick_device
from ..core.tools.files import check_out_folder
from ..core.tools.progress import progress_bar
from ..core.train.checkpoint import load_run
from ..core.train.loss import StageOne
from ..core.values.draws import Draws
from ..core.values.memory import Memory
from ..plugins.compressors.conv import ConvCompressor
from .common import command_line
from .returns.command import signed_interval, write_results

BOTH, NO_HR, NO_LR, NONE = "both branches", "without HR", "without LR", "no memory"
WAYS = (BOTH, NO_HR, NO_LR, NONE)


@frozen(kw_only=True)
class BranchLosses:
    """The losses of one clip, each the mean over the same draws.

    Attributes:
        name: of the clip.
        losses: by what was on.
    """

    name: str
    losses: Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and return the exit code."""
    parser = command_line("branches", __doc__)
    parser.add_argument("run", metavar="RUN", help="a run, or the name of weights that ship")
    parser.add_argument("--data", type=Path, required=True, help="a store of unseen clips")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--draws", type=int, help="of time and noise a clip; default: the run's")
    args = parser.parse_args(arguments)
    try:
        measure_branches(args.run, args.data, args.out, draws=args.draws)
    except Exception as error:  # a plugin may raise anything
        return exit_code(error, "branches")
    print(args.out / "branches.md")
    return 0


def measure_branches(
    run: str, data: Path, out: Path, *, draws: int | None = None
) -> dict[str, Any]:
    """Measure the losses of a run's branches, write the results and return them.

    Args:
        run: a run's folder, or a shipped name.
        data: a store of clips that it has not trained on.
        out: folder of the results.
        draws: of time and noise a clip, ≥ 1; None: what the run measures with.

    Raises:
        UserError: there is no such run, its memory is not that of one `conv` with both branches,
            `draws` is too small, or `out` cannot be written.
    """
    check_out_folder(out)
    if draws is not None and draws < 1:
        raise UserError(f"--draws {draws}: 1 or more")
    model = load_run(find_run(run)).to(pick_device())
    compressor = _both_branches(model, run)
    setup = MeasureSetup.build(model, Store.open(data))
    count = draws or model.experiment.measure.draws
    clips: list[BranchLosses] = []
    with evaluating(model), progress_bar("branches") as report:
        for record in setup.records():
            clips.append(_ask(setup, compressor, record, count))
            report(len(clips), len(setup.records()), record.name)
    result = {
        "run": run, "experiment": model.experiment.name, "store": str(data), "draws": count,
        **summary(clips), "clips": [attrs.asdict(clip) for clip in clips],
    }  # fmt: skip
    return write_results(out / "branches", result, page(result))


def _both_branches(model: Model, run: str) -> ConvCompressor:
    compressors = list(model.encoder.compressors)
    if len(compressors) == 1 and isinstance(one := compressors[0], ConvCompressor):
        if one.lr is not None and one.hr is not None:
            return one
    raise UserError(f"{run}: its memory is not that of one conv compressor with lr and hr")


def _ask(
    setup: MeasureSetup, compressor: ConvCompressor, record: Record, count: int
) -> BranchLosses:
    experiment = setup.model.experiment
    stage = StageOne(setup.model, setup.masker, experiment.train, setup.null_text)
    history, text = setup.history(record, pixels=setup.reads_pixels), setup.text(record)
    encode: Callable[[], Memory] = lambda: setup.model.encoder(history)  # noqa: E731
    memories = {BOTH: encode()}
    for way, branch in ((NO_HR, "hr"), (NO_LR, "lr")):
        with switched_off(compressor, branch):
            memories[way] = encode()
    memories[NONE] = Memory()
    draws = Draws.single(setup.generator(record, "gain"))
    losses: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(count):
        query = clean_query(setup, history, text, draws)
        drawn = stage.draw_noise(query, draws)
        for way, memory in memories.items():
            losses[way].append(float(stage.loss(query, memory, drawn)))
    return BranchLosses(
        name=record.name, losses={way: sum(x) / len(x) for way, x in losses.items()}
    )


@contextmanager
def switched_off(compressor: ConvCompressor, branch: str) -> Iterator[None]:
    """Give a compressor's tokens without one of its branches, `hr` or `lr`."""
    part = getattr(compressor, branch)
    setattr(compressor, branch, None)
    try:
        yield
    finally:
        setattr(compressor, branch, part)


def summary(clips: Sequence[BranchLosses]) -> dict[str, Any]:
    """Return the losses over clips, and how much greater each is than with both branches."""

    def over(values: Sequence[float]) -> dict[str, Any]:
        found: Interval = interval(values)
        return attrs.asdict(found)

    losses = {way: [clip.losses[way] for clip in clips] for way in WAYS}
    rises = {
        way: [more - both for more, both in zip(losses[way], losses[BOTH], strict=True)]
        for way in WAYS[1:]
    }
    return {
        "loss": {way: over(values) for way, values in losses.items()},
        "rise": {way: over(values) for way, values in rises.items()},
    }


def page(result: Mapping[str, Any]) -> str:
    """Return the page: losses, and what switching a branch off adds to them."""
    lines = ["| memory | loss | more than with both |", "|---|---:|---:|"]
    for way in WAYS:
        rise = signed_interval(result["rise"][way], digits=4) if way != BOTH else "–"
        lines.append(f"| {way} | {result['loss'][way]['mean']:.4f} | {rise} |")
    return (
        "# What each branch is worth\n\n"
        f"Flow-matching loss of {result['run']} on {len(result['clips'])} clips of "
        f"{result['store']}, {result['draws']} draws of frames, time and noise a clip, the same "
        "for all; mean over clips [95 % interval, paired].\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
