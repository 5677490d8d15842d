"""The paper's Table 1 as a command: every way to carry history, under one equal budget.

    python -m longtake.experiments.table1 --videos videos --out table1 --budget small

caches `videos/train` and `videos/val`, then trains and measures each row with each seed, and
writes `table1.md`, `table1.json`, `by_length.png`, `by_age.png` and `strips.png` after every run.
What is done is kept; the same command goes on where it stopped, in the middle of a run too.
`--add mine.py` adds the compressor that a Python file of yours offers, `--add NAME` one by its
plugin name, `--add JSON` one by its spec; `--rows` takes plugin names and added rows, too.
`--backbone NAME` (or a JSON spec) puts all rows on another DiT. Exit 0: all done. Exit 3: the
`--minutes` are over, run it again. Exit 2: bad input.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from ...core.errors import UserError
from ...core.plugin_errors import exit_code
from ...core.registry import LIST, registry
from ...core.tools.device import flushed_denormals
from ...core.tools.files import check_out_folder, whole_file, write_json
from ...core.tools.words import nearest
from ..common import command_line, commit, interrupt_after, machine_facts, tiny_clips
from .page import as_data, claims, floors, make_line, markdown
from .plots import by_age, by_length, strips
from .rows import BUDGETS, TableBudget, TableRow, backbone, rows, user_row
from .work import Seconds, TableFolder, encoder_seconds, measured_rows, prepare, work

AGAIN = 3
HIGHEST_SEED = 2**62 - 1
METRIC = "psnr"


@flushed_denormals()  # before any thread starts: training reaches only those that come later
def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure and write what is not there yet, and return the exit code."""
    args = _parser().parse_args(arguments)
    try:
        if not 0 < args.minutes < math.inf:  # a call that does nothing would be run for ever
            raise UserError(f"--minutes {args.minutes:g}: a number above 0")
        folder = _table_folder(args)
        return _run(folder, _chosen(args, folder.budget), args.minutes, args.no_cache)
    except Exception as error:  # a plugin may raise anything
        return exit_code(error, "table1")


def _parser() -> argparse.ArgumentParser:
    parser = command_line("table1", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the table")
    parser.add_argument("--videos", type=Path, help="folder with train/ and val/")
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="full")
    parser.add_argument("--rows", help="names of rows, separated by commas; default: all")
    parser.add_argument("--backbone", help="a backbone's name or JSON spec; default: tiny-wan")
    parser.add_argument("--seeds", help="seeds, separated by commas; default: the budget's")
    parser.add_argument("--add", action="append", default=[], help="a name, file.py or JSON")
    parser.add_argument("--minutes", type=float, default=1e6, help="length of this run, minutes")
    parser.add_argument("--no-cache", action="store_true", help="the stores are there and whole")
    return parser


def _table_folder(args: argparse.Namespace) -> TableFolder:
    check_out_folder(args.out)
    budget = BUDGETS[args.budget]
    if args.backbone:
        budget = attrs.evolve(budget, dit=backbone(args.backbone))
    if args.seeds:
        budget = attrs.evolve(budget, seeds=_seeds(args.seeds))
    videos = args.videos
    if videos is None and budget.name == "tiny":
        videos = tiny_clips(args.out / "videos")
    if videos is None or not (videos / "train").is_dir() or not (videos / "val").is_dir():
        raise UserError("--videos must name a folder that holds train/ and val/")
    return TableFolder(out=args.out, videos=videos, budget=budget)


def _seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of `--seeds`, none twice.

    Raises:
        UserError: they are no whole numbers from 0 on.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    fine = all(name.isascii() and name.isdecimal() for name in names)
    if not names or not fine or any(int(name) > HIGHEST_SEED for name in names):
        raise UserError(f"--seeds {text}: whole numbers from 0 to {HIGHEST_SEED}, such as 0,1")
    return tuple(dict.fromkeys(int(name) for name in names))


def _chosen(args: argparse.Namespace, budget: TableBudget) -> list[TableRow]:
    known = rows(budget.backbone.geometry, budget.history)
    own = [user_row(text) for text in args.add]
    by_name = {row.name: row for row in known}
    for row in own:
        if row.name in by_name:
            raise UserError(f"--add {row.name}: a row has that name; give a `name` beside `type`")
        by_name[row.name] = row
    if args.rows is None:
        return [*known, *own]
    names = [name for text in args.rows.split(",") if (name := text.strip())]
    if not names:
        raise UserError(f"--rows {args.rows!r} names none; known: {', '.join(by_name)}")
    plugins = [plugin.name for plugin in registry().of("compressor")]
    unknown = [name for name in names if name not in by_name and name not in plugins]
    if unknown:
        listed = ", ".join(nearest(unknown[0], by_name))
        raise UserError(
            f"unknown row {unknown[0]!r}; known: {listed}; or a compressor (`{LIST}` lists all)"
        )
    chosen = [by_name[name] if name in by_name else user_row(name) for name in names]
    return [*chosen, *(row for row in own if row.name not in names)]


def _run(folder: TableFolder, chosen: list[TableRow], minutes: float, cached: bool) -> int:
    try:
        with interrupt_after(60 * minutes):
            left_out = [] if cached else prepare(folder, chosen)
            for seed in folder.budget.seeds:
                for row in chosen:
                    if folder.read(row, seed) is None and not work(folder, row, seed):
                        return AGAIN
                    write(folder, chosen, left_out)
            timed = encoder_seconds(folder, [row for row, _ in measured_rows(folder, chosen)])
            write(folder, chosen, left_out, timed)
    except KeyboardInterrupt:
        return AGAIN
    print(folder.out / "table1.md")
    return 0


def write(
    folder: TableFolder,
    chosen: Sequence[TableRow],
    left_out: Sequence[str],
    timed: Seconds | None = None,
) -> None:
    """Write the table and its pictures from all runs that are there, those of other calls, too.

    Args:
        folder: of the table.
        chosen: rows of this call.
        left_out: what `prepare` says of videos that no row saw.
        timed: seconds of encoders.
    """
    runs_by_row = measured_rows(folder, chosen)
    if not runs_by_row:
        return
    lines = [make_line(row, runs) for row, runs in runs_by_row]
    floor_means = floors(runs_by_row[0][1], METRIC)
    all_claims = claims({line.row.name: line for line in lines}, METRIC)
    about = {
        "left_out": list(left_out),
        "encoder_seconds": timed or {},
        "facts": machine_facts(),
        **commit(),
    }
    write_json(
        folder.out / "table1.json", as_data(lines, floor_means, all_claims, folder.budget, about)
    )
    text = markdown(lines, floor_means, folder.budget, timed or {})
    text += "\n" + "".join(f"- {claim.state}: {claim.text}\n" for claim in all_claims)
    text += "".join(f"- left out: {line}\n" for line in left_out)
    with whole_file(folder.out / "table1.md") as part:
        part.write_text(text, encoding="utf-8")
    by_length(folder.out / "by_length.png", lines, floor_means)
    by_age(folder.out / "by_age.png", lines)
    strips(folder.out / "strips.png", folder.out / "strips", lines)


if __name__ == "__main__":
    sys.exit(main())
