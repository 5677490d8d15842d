"""Arguments and options that several verbs share; light, since the door imports it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ..errors import UserError
from ..registry import nearest, registry

ExperimentArg = Annotated[
    str, typer.Argument(help="a shipped name, module:name, or file.py:name", metavar="EXPERIMENT")
]
RunArg = Annotated[str, typer.Argument(help="a run's folder, or a shipped name", metavar="RUN")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="change one field, such as compressor.rate=2x2x2; may be repeated"),
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Seed = typer.Option(help="same as --set train.seed=", min=0, max=2**62)
Data = Annotated[Path, typer.Option("--data", help="a latent store, made by `longtake cache`")]
Start = Annotated[
    Path | None, typer.Option(help="begin with the weights of another run or checkpoint")
]
Rank = Annotated[
    int | None, typer.Option(help="this process's share; default: its launcher's", min=0)
]
World = Annotated[int | None, typer.Option(help="number of shares", min=1)]
BenchData = Annotated[
    Path | None, typer.Option(help="a latent store to load from; default: one written for it")
]
Beside = Annotated[
    list[Path] | None,
    typer.Option(help="an earlier measure to compare rates with; may be repeated"),
]
PictureOut = Annotated[
    Path | None, typer.Option(help="also write one picture of frames, .jpg or .png")
]
ClipNames = Annotated[str, typer.Option(help="names of its clips, separated by commas")]
Credit = Annotated[str, typer.Option(help="the line under it; default: captions")]


def out(help_text: str) -> Any:
    """Return the option `--out`."""
    return typer.Option("--out", "--output_dir", help=help_text)


# ⟦core/verbs/common.py⟧ What verbs share: finding runs, and printing results.


def find_run(text: str) -> Path:
    """Return the folder that RUN names: a run, a checkpoint, or shipped weights by name.

    Raises:
        UserError: there is no such folder and no weights of that name ship.
    """
    if Path(text).is_dir():
        return Path(text)
    shipped = registry().weights
    if text in shipped:
        return shipped[text]
    known = ", ".join(nearest(text, shipped)) or "none"
    raise UserError(f"{text}: no such run; weights that ship: {known}")


def emit(data: Any, lines: list[str], *, as_json: bool) -> None:
    """Print the result: JSON, or lines to read."""
    print(json.dumps(data, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


# ⟦core/verbs/door.py⟧ The group of all verbs: Ctrl-C ends any of them in one line.


class Door(TyperGroup):
    """The verbs; Ctrl-C is met here, since what click makes of it differs by version."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            stopped()


def stopped() -> NoReturn:
    """Say that the program was stopped, and exit 130 as programs do after Ctrl-C."""
    print("longtake: stopped", file=sys.stderr)
    sys.exit(130)
