"""The program: mounts one verb for each file of `core/cli`, and turns errors into exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from .core.cli.bench import bench
from .core.cli.cache import cache
from .core.cli.check import check
from .core.cli.demo import demo
from .core.cli.export import export
from .core.cli.finetune import finetune
from .core.cli.generate import generate
from .core.cli.list import list_
from .core.cli.measure import measure
from .core.cli.options import Verbs, exit_stopped
from .core.cli.pretrain import pretrain
from .core.cli.probe import probe
from .core.cli.retrieve import retrieve
from .core.cli.show import show
from .core.plugin_errors import DEBUG, exit_code
from .core.tools.threads import let_waiting_threads_sleep

app = typer.Typer(
    name="longtake",
    cls=Verbs,
    help="The past of a video as a short memory that a video diffusion transformer reads.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help=f"print tracebacks, as {DEBUG}=1 does; with every verb")
    ] = False,
) -> None:
    """Show the options of all verbs; `main` takes them out, wherever they stand."""


app.command("list")(list_)
for verb in (
    show, cache, pretrain, finetune, generate, retrieve, measure, bench, demo, export, probe, check,
):  # fmt: skip
    app.command()(verb)


def main() -> NoReturn:
    """Run the program; exit 0 done, 1 failed, 2 bad input with one clear line."""
    let_waiting_threads_sleep()
    with _debugging(sys.argv[1:]) as words:
        try:
            app(words, standalone_mode=True)
        except KeyboardInterrupt:
            exit_stopped()
        except BrokenPipeError:
            sys.exit(1)
        except Exception as error:  # a plugin may raise anything
            sys.exit(exit_code(error, "longtake"))
        sys.exit(0)


@contextmanager
def _debugging(words: Sequence[str]) -> Iterator[list[str]]:
    """Yield the words without `--debug`, which sets LONGTAKE_DEBUG, for child processes, too."""
    rest = [word for word in words if word != "--debug"]
    before = os.environ.get(DEBUG)
    if len(rest) < len(words):
        os.environ[DEBUG] = "1"
    try:
        yield rest
    finally:
        if before is None:
            os.environ.pop(DEBUG, None)
        else:
            os.environ[DEBUG] = before


if __name__ == "__main__":
    main()
