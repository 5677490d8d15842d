"""Results of the change probe: a page that says how it was asked, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from ..returns.ask import ALONE, CEILING, LAST, MEMORY, NONE, OWN, TRUTH, WINDOW
from ..returns.clips import RETURN, SECONDS
from ..returns.command import draw_clips, signed_interval
from .ask import WAS, ChangeResult

FIRST_SHOWN = (WAS, TRUTH, MEMORY, ALONE, NONE)


@frozen(kw_only=True)
class ChangeDescription:
    """How the probe was made.

    Attributes:
        run, window: the runs, as named; `window` None where none was given.
        beside: the names of further models' answers.
        experiment: of the run.
        fps: frames a second of the clips as the model sees them.
        photos: the folder of the photographs; None: those of the built-in clip.
    """

    run: str
    window: str | None
    beside: tuple[str, ...]
    experiment: str
    fps: float
    photos: str | None


def page(
    description: ChangeDescription,
    clips: Sequence[ChangeResult],
    over: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the page: what was asked and how, and the means by kind of change."""
    words = "\n".join(f"- {line}" for line in _notes(description, clips))
    title = f"# Things that changed, asked of {description.run}"
    figures = (
        "PSNR in dB where the thing is, of the answer to the thing as it is (newer) and as it was "
        "(older); `lead` is their difference, above 0 where the newer state is given; [95 % "
        "interval over clips]."
    )
    tables = "\n".join(_table(kind, figures_of) for kind, figures_of in over.items())
    return f"{title}\n\n{figures}\n\n{tables}\n{words}\n"


def _table(kind: str, over: Mapping[str, Any]) -> str:
    head = ["answer", "newer", "older", "lead", "gives the newer", f"{MEMORY}'s lead above it"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for way in over["lead"]:
        above = over["memory_over"].get(way)
        rows.append([
            way,
            f"{over['newer'][way]:.2f}",
            f"{over['older'][way]:.2f}",
            signed_interval(over["lead"][way]),
            f"{100 * over['gives_newer'][way]['mean']:.0f} %",
            "" if above is None else signed_interval(above),
        ])  # fmt: skip
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    apart = over["apart"]["mean"]
    return f"## {kind}, {over['clips']} clips, states {apart:.1f} dB apart\n\n{lines}\n"


def _notes(description: ChangeDescription, clips: Sequence[ChangeResult]) -> list[str]:
    clip = clips[0]
    other = f"`{OWN}` is {description.window}. " if description.window else ""
    if description.beside:
        names = ", ".join(f"`{name}`" for name in description.beside)
        other += f"Models with other memories answer as {names}. "
    photos = description.photos or "of the built-in clip (scikit-image)"
    return [
        f"Clips of {SECONDS:.1f} s at {description.fps:g} fps from photographs {photos}: a picture "
        "lies on a photograph (the thing), the camera looks at it, goes to a part that shares no "
        f"pixel with it, and is back at {RETURN:.2f} s. The history is {clip.seen} latents and "
        f"ends before; asked are latents {clip.asked[0]} to {clip.asked[-1]}, of the return.",
        "`watched`: the thing changes while it is looked at. `behind`: it changes while the camera "
        "is elsewhere, is seen again, and left again. `swap`: it becomes another one, `comes`: it "
        "was not there, `goes`: it is no longer there. Both states are in every history, so what "
        "keeps only one of them, or their mean, leads by little.",
        f"`{MEMORY}`, `memory and window`, `{ALONE}` (the newest {WINDOW} latents) and `{NONE}` "
        f"are asked of {description.run} ({description.experiment}), a model trained with its own "
        f"memory, which flatters memory. {other}`{LAST}` repeats the newest frame of the history, "
        f"which shows neither state; `{CEILING}` is the codec's own reconstruction. All are asked "
        "in one step, of the same noise.",
        "The asked frames lie beyond the history, where Stage I never trained, and nothing says to "
        "the model that the view comes back.",
    ]


def picture(path: Path, clips: Sequence[ChangeResult]) -> None:
    """Draw one clip of each kind of change: as it was, as it is, and as each way gave it back."""
    kinds = dict.fromkeys((clip.when, clip.what) for clip in clips)
    rows = [_median([c for c in clips if (c.when, c.what) == kind]) for kind in kinds]
    further = [way for way in rows[0].newer if way not in (*FIRST_SHOWN, LAST, CEILING)]
    draw_clips(path, rows, [*FIRST_SHOWN, *further], _title, size=6)


def _title(clip: ChangeResult, way: str) -> str:
    lead = f", lead {clip.lead(way):+.1f} dB" if way in clip.newer else ""
    return f"{clip.name}: {way}{lead}" if way == WAS else f"{way}{lead}"


def _median(clips: Sequence[ChangeResult]) -> ChangeResult:
    """Return the clip in the middle by memory's lead: neither the best nor the worst is shown."""
    return sorted(clips, key=lambda clip: clip.lead(MEMORY))[len(clips) // 2]
