"""`longtake show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def show(
    experiment: o.ExperimentArg,
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
    """Show an experiment resolved, and the context lengths of its memory.

    Example: longtake show tiny-wan-2x2x2 --set compressor.rate=4x4x2
    """
    from .. import show as describe
    from ..errors import UserError

    if video is not None and picture is None:
        raise UserError("--video is the clip of a picture: name one with --picture FILE")
    name, changed = o.read_experiment(experiment, sets, says=False)
    specs = changed.spec
    drawn = None
    if picture is not None:
        from ..pages.masker import save_masker_picture

        drawn = str(save_masker_picture(specs, picture, video=video))
    data = describe.show(name, specs, sets=changed.sets, swap=changed.swap)
    if as_json:
        more = {} if drawn is None else {"picture": drawn}
        o.print_json(data | more)
        return
    describe.print_show(data, fields=fields)
    if drawn is not None:
        print(f"picture: {drawn}")
