"""Arguments and options that several verbs share; light, since the door imports it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
    """Give the option `--out`."""
    return typer.Option("--out", "--output_dir", help=help_text)
