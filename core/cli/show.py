"""`longtake show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def show(
    experiment: Annotated[
        str,
        typer.Argument(
            help="a shipped name, module:name, or file.py:name; a kind of plugins; or a take",
            metavar="EXPERIMENT|KIND|TAKE",
        ),
    ],
    name: Annotated[
        str | None, typer.Argument(help="of one plugin of that kind", metavar="[NAME]")
    ] = None,
    sets: o.Sets = None,
    fields: Annotated[
        bool, typer.Option(help="print what every field means, and where its value is from")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="also draw what its masker does to a clip: .png, .jpg, .svg")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="the clip of the picture; default: a built-in one")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Show an experiment resolved, and the context lengths of its memory; or one plugin's fields.

    A kind alone (`longtake show compressor`) prints what an author of one answers.

    Example: longtake show tiny-wan-2x2x2 --set compressor.rate=4x4x2

    Example: longtake show compressor conv

    Example: longtake show walk
    """
    from .. import show as describe
    from ..errors import UserError
    from ..take.folder import was_take

    if was_take(Path(experiment)):
        if name is not None or sets or fields or picture is not None or video is not None:
            raise UserError(f"{experiment} is a take, which is shown without options")
        _show_take(Path(experiment), as_json)
        return
    if name is not None or describe.is_kind(experiment):
        if sets or fields or picture is not None or video is not None:
            raise UserError("--set, --fields, --picture and --video are for experiments")
        _show_plugin(describe.checked_kind(experiment), name, as_json)
        return
    if video is not None and picture is None:
        raise UserError("--video is the clip of a picture: name one with --picture FILE")
    short, changed = o.read_experiment(experiment, sets)
    specs = changed.spec
    drawn = None
    if picture is not None:
        from ..pages.masker import save_masker_picture

        drawn = str(save_masker_picture(specs, picture, video=video))
    data = describe.show(short, specs, sets=changed.sets, swap=changed.swap)
    if as_json:
        more = {} if drawn is None else {"picture": drawn}
        o.print_json(data | more)
        return
    describe.print_show(data, fields=fields)
    if drawn is not None:
        print(f"picture: {drawn}")


def _show_plugin(kind: str, name: str | None, as_json: bool) -> None:
    """Print one plugin, or without a name the tutorial of its kind."""
    from .. import show as describe

    if name is not None:
        data = describe.show_plugin(kind, name)
        o.print_json(data) if as_json else describe.print_plugin(data)
        return
    text = describe.interface(kind)
    o.print_json({"kind": kind, "interface": text}) if as_json else print(text)


def _show_take(root: Path, as_json: bool) -> None:
    """Print the segments of a take, what they were made of, and what is still to make."""
    from ..take.show import describe_take, lines_of

    data = describe_take(root)
    o.print_result(data, lines_of(data), as_json=as_json)
