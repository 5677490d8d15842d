"""The program: mounts one verb for each file of `core/cli`, and turns errors into exit codes."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from .core.cli.bench import bench
from .core.cli.cache import cache
from .core.cli.check import check
from .core.cli.demo import demo
from .core.cli.export import export
from .core.cli.list import list_
from .core.cli.measure import measure
from .core.cli.options import Verbs, exit_stopped
from .core.cli.pretrain import pretrain
from .core.cli.probe import probe
from .core.cli.retrieve import retrieve
from .core.cli.show import show
from .core.errors import LongtakeError

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
app.command("list")(list_)
for verb in (show, cache, pretrain, retrieve, measure, bench, demo, export, probe, check):
    app.command()(verb)


def main() -> NoReturn:
    """Run the program; exit 0 done, 1 failed, 2 bad input with one clear line."""
    try:
        app(standalone_mode=True)
    except LongtakeError as error:
        print(f"longtake: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        exit_stopped()
    except BrokenPipeError:
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
