"""The paper's Table 1 as a command: every way to carry history, under one equal budget.

    python -m longtake.experiments.table1 --videos videos --out table1 --budget small

caches `videos/train` and `videos/val`, then trains and measures each row with each seed, and
writes `table1.md`, `table1.json`, `by_length.png`, `by_age.png` and `strips.png` after every run.
What is done is kept; the same command goes on where it stopped, in the middle of a run too.
`--add mine.py` adds the compressor that a Python file of yours offers, `--add NAME` one by its
plugin name, `--add JSON` one by its spec. Exit 0: all done. Exit 3: the `--minutes` are over, run
it again. Exit 2: bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from ...core.errors import LongtakeError, UserError
from ...core.tools.files import whole_file, write_json
from ..common import alarm, commit, facts, tiny_clips
from .page import as_data, claims, floors, line_of, markdown
from .plots import by_age, by_length, strips
from .rows import BUDGETS, Budget, Row, own_row, rows
from .work import Bench, Paces, measured, paces, prepare, work

AGAIN = 3
METRIC = "psnr"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is due, and give the exit code."""
    args = _parser().parse_args(arguments)
    try:
        bench = _bench(args)
        return _go(bench, _chosen(args, bench.budget), args.minutes, args.no_cache)
    except UserError as error:
        print(f"table1: {error}", file=sys.stderr)
        return 2
    except LongtakeError as error:
        print(f"table1: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m longtake.experiments.table1",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--out", type=Path, required=True, help="folder of the table")
    found.add_argument("--videos", type=Path, help="folder with train/ and val/")
    found.add_argument("--budget", choices=sorted(BUDGETS), default="full")
    found.add_argument("--rows", help="names of rows, separated by commas; default: all")
    found.add_argument("--seeds", help="seeds, separated by commas; default: the budget's")
    found.add_argument("--add", action="append", default=[], help="a name, file.py or JSON")
    found.add_argument("--minutes", type=float, default=1e6, help="length of this run, minutes")
    found.add_argument("--no-cache", action="store_true", help="the stores are there and whole")
    return found


def _bench(args: argparse.Namespace) -> Bench:
    budget = BUDGETS[args.budget]
    if args.seeds:
        try:
            seeds = tuple(int(text) for text in args.seeds.split(","))
        except ValueError as error:
            raise UserError(f"--seeds {args.seeds}: whole numbers, such as 0,1") from error
        budget = attrs.evolve(budget, seeds=seeds)
    videos = args.videos
    if videos is None and budget.name == "tiny":
        videos = tiny_clips(args.out / "videos")
    if videos is None or not (videos / "train").is_dir() or not (videos / "val").is_dir():
        raise UserError("--videos must name a folder that holds train/ and val/")
    return Bench(out=args.out, videos=videos, budget=budget)


def _chosen(args: argparse.Namespace, budget: Budget) -> list[Row]:
    known = rows(budget.backbone.geometry, budget.history)
    if args.rows:
        by_name = {row.name: row for row in known}
        wanted = [name for name in args.rows.split(",") if name]
        odd = [name for name in wanted if name not in by_name]
        if odd:
            raise UserError(f"unknown row {odd[0]!r}; known: {', '.join(by_name)}")
        known = [by_name[name] for name in wanted]
    own = [own_row(text) for text in args.add]
    taken = {row.name for row in rows(budget.backbone.geometry, budget.history)}
    for row in own:
        if row.name in taken:
            raise UserError(f"--add {row.name}: a row has that name; give a `name` beside `type`")
        taken.add(row.name)
    return [*known, *own]


def _go(bench: Bench, chosen: list[Row], minutes: float, cached: bool) -> int:
    try:
        with alarm(60 * minutes):
            if not cached:
                prepare(bench, chosen)
            for seed in bench.budget.seeds:
                for row in chosen:
                    if bench.read(row, seed) is None and not work(bench, row, seed):
                        return AGAIN
                    write(bench, chosen)
            write(bench, chosen, paces(bench, [row for row, _ in measured(bench, chosen)]))
    except KeyboardInterrupt:
        return AGAIN
    print(bench.out / "table1.md")
    return 0


def write(bench: Bench, chosen: Sequence[Row], timed: Paces | None = None) -> None:
    """Write the table and its pictures from all runs that are there, those of other calls, too."""
    found = measured(bench, chosen)
    if not found:
        return
    lines = [line_of(row, runs) for row, runs in found]
    under = floors(found[0][1], METRIC)
    told = claims({line.row.name: line for line in lines}, METRIC)
    about = {"encoder_seconds": timed or {}, "facts": facts(), **commit()}
    write_json(bench.out / "table1.json", as_data(lines, under, told, bench.budget, about))
    text = markdown(lines, under, bench.budget, timed or {})
    text += "\n" + "".join(f"- {claim.state}: {claim.text}\n" for claim in told)
    with whole_file(bench.out / "table1.md") as part:
        part.write_text(text, encoding="utf-8")
    by_length(bench.out / "by_length.png", lines, under)
    by_age(bench.out / "by_age.png", lines)
    strips(bench.out / "strips.png", bench.out / "strips", lines)


if __name__ == "__main__":
    sys.exit(main())
