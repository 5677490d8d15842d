"""Results of the return probe: a page that says how it was asked, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from ...core.video.builtin_clip import CREDITS
from .ask import (
    ALONE,
    ANSWERS,
    CEILING,
    FIRST,
    LAST,
    MEMORY,
    NONE,
    OWN,
    TRUTH,
    WINDOW,
    ReturnResult,
)
from .clips import LEFT, LOOK, NEAR, RETURN, SECONDS
from .command import draw_clips, signed_interval

SHOWN = (FIRST, LAST, TRUTH, MEMORY, ALONE, NONE, OWN)
BESIDE = (ALONE, NONE, OWN)  # what memory is held against, and further models
KNOWN = (*ANSWERS, LAST, FIRST, CEILING)


@frozen(kw_only=True)
class ProbeDescription:
    """How the probe was made.

    Attributes:
        run, window: the runs, as named; `window` None where none was given.
        experiment: of the run.
        fps: frames a second of the clips as the model sees them.
        stride: of the codec in time.
        left_out: real videos that gave no clip, with the reason.
        beside: the names of further models' answers.
    """

    run: str
    window: str | None
    experiment: str
    fps: float
    stride: int
    left_out: Mapping[str, str]
    beside: tuple[str, ...] = ()


def page(
    description: ProbeDescription,
    clips: Sequence[ReturnResult],
    over: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the page: what was asked and how, and the means by kind of clip."""
    notes = [*_who(description), *_what(description, clips), *_left_out(description), _credits()]
    words = "\n".join(f"- {line}" for line in notes)
    title = f"# Frames that come back to a view, asked of {description.run}"
    figures = "PSNR in dB, means over clips; differences with their 95 % interval over clips."
    return f"{title}\n\n{figures}\n\n{table(over)}\n{words}\n"


def table(over: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of means, and of memory's lead over the other ways, as Markdown."""
    ways, *_ = (list(means["psnr"]) for means in over.values())
    further = [way for way in ways if way not in KNOWN]
    beside = [*(way for way in BESIDE if way in ways), *further]
    head = ["clips", "n", *ways, *(f"memory − {way}" for way in beside)]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for kind, figures in over.items():
        means = [f"{figures['psnr'][way]['mean']:.2f}" for way in ways]
        leads = [signed_interval(figures["memory_over"][way]) for way in beside]
        rows.append([kind, str(figures["clips"]), *means, *leads])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def _who(description: ProbeDescription) -> list[str]:
    trained = f"`{MEMORY}`, `memory and window`, `{ALONE}` (the newest {WINDOW} latents) and"
    flatters = (
        f"{trained} `{NONE}` are all asked of {description.run} ({description.experiment}), "
        "a model trained with its own memory: it was never trained to read a window or nothing "
        "as well as it could, which flatters memory."
    )
    if description.window is None:
        fair = f"No model trained with a window was asked: `--window-run` adds one as `{OWN}`."
    else:
        fair = f"`{OWN}` is {description.window}, trained with a sliding window as its memory."
    if description.beside:
        fair += (
            f" Models with other memories answer as {', '.join(map(_code, description.beside))}."
        )
    beyond = (
        "The asked frames lie beyond the history, where Stage I never trained: it asked for frames "
        "of the history itself. And nothing says to the model that the view comes back: what it "
        "gives is what it expects next."
    )
    floors = (
        f"`{LAST}` repeats the newest frame of the history, `{FIRST}` are the frames of the "
        "history that show what returns, `ceiling` is the codec's own reconstruction. "
        "All are asked in one step, of the same noise, without a prompt."
    )
    return [flatters, fair, beyond, floors]


def _code(name: str) -> str:
    return f"`{name}`"


def _what(description: ProbeDescription, clips: Sequence[ReturnResult]) -> list[str]:
    kinds = {clip.kind: clip for clip in reversed(clips)}
    sizes = sorted({"×".join(map(str, clip.shown[TRUTH].shape[:0:-1])) for clip in clips})
    every = f"Clips of {SECONDS:.1f} s at {description.fps:g} fps, of {', '.join(sizes)} pixels."
    return [every, *(_kind(description, kind, clip) for kind, clip in sorted(kinds.items()))]


def _kind(description: ProbeDescription, kind: str, clip: ReturnResult) -> str:
    does = {
        "pan": f"the camera looks at a part of a photograph (zoom {NEAR.zoom:g}), goes to a part "
        "that shares no pixel with it, and comes back",
        "cut": f"a photograph (zoom {LOOK.zoom:g}), another one, and a cut back to the first",
        "back": f"{RETURN:.1f} s of a real video, and a cut to its first seconds run backwards",
    }
    stride, fps = description.stride, description.fps
    end = stride * (clip.seen - 1) / fps
    begin, last = (stride * (clip.asked[0] - 1) + 1) / fps, stride * clip.asked[-1] / fps
    history = f"the history is {clip.seen} latents, to {end:.2f} s"
    return (
        f"`{kind}`: {does[kind]}; {history}, asked are {len(clip.asked)} latents of "
        f"{begin:.2f} to {last:.2f} s."
    )


def _left_out(description: ProbeDescription) -> list[str]:
    if not description.left_out:
        return []
    named = "; ".join(f"{name}: {reason}" for name, reason in description.left_out.items())
    rule = f"too short, or their last seen frame is within {LEFT:g} dB of what returns"
    return [f"Real videos left out ({rule}): {named}."]


def _credits() -> str:
    named = "; ".join(f"{c.title} ({c.author}, {c.licence})" for c in CREDITS)
    return f"Photographs, from scikit-image: {named}."


def picture(path: Path, clips: Sequence[ReturnResult]) -> None:
    """Draw one clip of each kind, a row each: seen, returned, and as each way gave it back."""
    rows = [_median([clip for clip in clips if clip.kind == kind]) for kind in _kinds(clips)]
    ways = [way for way in SHOWN if way in rows[0].shown]
    ways += [way for way in rows[0].shown if way not in (*KNOWN, TRUTH)]
    draw_clips(path, rows, ways, _title, size=7)


def _kinds(clips: Sequence[ReturnResult]) -> list[str]:
    return list(dict.fromkeys(clip.kind for clip in clips))


def _median(clips: Sequence[ReturnResult]) -> ReturnResult:
    """Return the clip in the middle by memory's PSNR: neither the best nor the worst is shown."""
    return sorted(clips, key=lambda clip: clip.psnr[MEMORY])[len(clips) // 2]


def _title(clip: ReturnResult, way: str) -> str:
    if way == FIRST:
        return f"{clip.name}: {way}"
    return way if way in (CEILING, TRUTH) else f"{way}, {clip.psnr[way]:.1f} dB"
