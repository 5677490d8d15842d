"""What the verbs share: arguments and options, the folder of a run, printing, and Ctrl-C.

Everything in `core/cli` imports torch and other heavy packages inside functions only, so that
`longtake --help` and `longtake list` are quick.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from attrs import define
from typer.core import TyperGroup

from ..errors import UserError
from ..registry import registry, shipped_weights

if TYPE_CHECKING:
    from ..config import Changed
    from ..experiment import Experiment
    from ..tools.progress import Report

ExperimentArg = Annotated[
    str, typer.Argument(help="a shipped name, module:name, or file.py:name", metavar="EXPERIMENT")
]
RunArg = Annotated[
    str,
    typer.Argument(help="a run's folder, a bundle of `export`, or a shipped name", metavar="RUN"),
]
Data = Annotated[Path, typer.Option("--data", help="a latent store, made by `longtake cache`")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="change one field, such as compressor.rate=2x2x2; may be repeated"),
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


def out_option(help_text: str) -> Any:
    """Return the option `--out`, also spelt `--output_dir`."""
    return typer.Option("--out", "--output_dir", help=help_text)


def read_experiment(text: str, sets: list[str] | None) -> tuple[str, Changed[Experiment]]:
    """Return the name of an EXPERIMENT, and what `--set` made of it.

    Raises:
        UserError, SpecError: as `load_experiment` and `apply_sets`.
    """
    from ..config import change, load_experiment

    name, experiment = load_experiment(text)
    return name, change(experiment, sets or [])


@define
class SwapNotice:
    """What an experiment became, such as by a change of backbone, on stderr once work begins.

    Bad input is found before that, and has a line of its own alone.

    Attributes:
        line: what to say; "": nothing.
    """

    line: str

    @classmethod
    def of(cls, changed: Changed[Experiment]) -> SwapNotice:
        """Return the notice of what `--set` made of an experiment."""
        swap = changed.swap
        return cls("" if swap is None else f"{swap.line} (`longtake show` lists them)")

    def add(self, line: str) -> None:
        """Say another line, too, before what there is."""
        self.line = f"{line}\n{self.line}" if self.line else line

    def say(self) -> None:
        """Print the line, unless it was."""
        if self.line:
            print(self.line, file=sys.stderr)
        self.line = ""

    def before(self, report: Report) -> Report:
        """Return a report of progress that says the line at its first call."""

        def reporting(done: int, total: int, note: str) -> None:
            self.say()
            report(done, total, note)

        return reporting


def find_run(text: str) -> Path:
    """Return what RUN names: a run, a checkpoint, shipped weights by name, or a bundle's file.

    Raises:
        UserError: there is no such folder or file, and no weights of that name ship or load.
    """
    if Path(text).is_dir() or (Path(text).is_file() and text.endswith(".safetensors")):
        return Path(text)
    shipped = registry().weights
    if text in shipped:
        return shipped[text]
    registry().check_loaded("weights", text)
    known = shipped_weights(text, "spec.json")
    raise UserError(f"{text}: no such run; weights that ship: {known}")


def is_shipped(folder: Path) -> bool:
    """Say whether a folder of weights ships with a package: nothing is written beside those."""
    return folder in registry().weights.values()


def print_json(data: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def print_result(data: Any, lines: list[str], *, as_json: bool) -> None:
    """Print the result of a verb: `data` as JSON, or `lines` to read."""
    if as_json:
        print_json(data)
    else:
        print("\n".join(lines))


class Verbs(TyperGroup):
    """The group of all verbs; Ctrl-C is caught here, since what click makes of it differs."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            exit_stopped()


def exit_stopped() -> NoReturn:
    """Print that the program was stopped, and exit with 130 as programs do after Ctrl-C."""
    print("longtake: stopped", file=sys.stderr)
    sys.exit(130)
