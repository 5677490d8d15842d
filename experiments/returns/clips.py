"""Clips that leave a view and come back: built from photographs, and real ones run back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from attrs import field, frozen

from ...core.data.sources import SUFFIXES
from ...core.errors import UserError
from ...core.interfaces.codec import frames_of
from ...core.tools.files import read_object, write_json
from ...core.video.builtin_clip import CREDITS, render_shots
from ...core.video.camera import Framing, Shot
from ...core.video.decode import Pixels, VideoError, fingerprint, probe
from ...core.video.read import read_frames
from ...core.video.write import write_video

# All clips are 1 + 4k frames at 16 fps and at 8, and the view is back at a frame with which a
# latent begins at both, so that the history can end right before the frames that are asked.
FPS, FRAMES, BACK = 16.0, 161, 121
SECONDS, RETURN = FRAMES / FPS, BACK / FPS
ASKED = 4  # latents at most
TICK = 1e-3  # seconds that a frame's time may be off when a video is read

SIZE = (512, 288)  # width, height of clips from photographs
LARGEST = 720  # of a real video's short side; larger ones shrink
PHOTOS = tuple(credit.photo for credit in CREDITS)
NEAR, FAR = Framing(0.1, 0.3, 2.5), Framing(0.9, 0.7, 2.5)  # which share no pixel
UNLIKE = {"rocket.jpg": (Framing(0.55, 0.95, 2.5), Framing(0.1, 0.1, 2.5))}  # else both are sky
LOOK = Framing(0.3, 0.3, 1.6)
KINDS = ("pan", "cut", "back")
LEFT = 16.0  # dB: a real video whose last seen frame is nearer to its first ones never left them
WHAT = "plan of return clips"


@frozen(kw_only=True)
class Times:
    """When a clip comes back, in seconds.

    Attributes:
        leaves: here it begins to leave what it went to; the history ends before.
        back: from here on nothing but the first view is seen.
    """

    leaves: float = RETURN
    back: float = RETURN

    def seen(self, fps: float, stride: int, latents: int) -> int:
        """Return how many latents lie wholly before the return begins: those of the history.

        Args:
            fps: frames a second of the cached clip.
            stride: of the codec in time.
            latents: of the clip.
        """
        ends = (frames_of(index, stride)[-1] / fps for index in range(latents))
        return sum(end < self.leaves - TICK for end in ends)

    def asked(self, fps: float, stride: int, latents: int) -> tuple[int, ...]:
        """Return the first latents, four at most, that lie wholly after the return."""
        begins = ((index, frames_of(index, stride)[0] / fps) for index in range(latents))
        return tuple(index for index, begin in begins if begin >= self.back - 1e-6)[:ASKED]


TIMES = {"pan": Times(leaves=RETURN - 0.5), "cut": Times(), "back": Times()}


def first_seen(kind: str, seconds: float) -> float:
    """Return when the history showed what a clip shows at `seconds`, after its return."""
    return (FRAMES - 1) / FPS - seconds if kind == "back" else 0.0


@frozen(kw_only=True)
class ReturnClips:
    """The clips, and the real videos of which none could be made, with the reason."""

    clips: tuple[Path, ...]
    left_out: Mapping[str, str] = field(factory=dict)


def build_clips(folder: Path, real: Path | None = None) -> ReturnClips:
    """Write the clips into a folder, named `<kind>-<what>.mp4`; those that are there stay.

    `pan`: the camera looks at a part of a photograph, goes to another that shares no pixel with
    it, and back. `cut`: it looks at another photograph in between. `back`: 7.6 s of a real video,
    then its first seconds in reverse.

    Args:
        folder: where to; what the clips are stands beside it.
        real: a folder of videos to run back; None: none.

    Raises:
        UserError: `real` holds no video that can be run back, or `folder` has clips of another
            plan than this version's, or of another video of the same name.
    """
    _note_plan(folder, [] if real is None else _videos(real))
    photos = [_photo(folder, kind, place) for kind in KINDS[:2] for place in range(len(PHOTOS))]
    written, left_out = _real(folder, real) if real is not None else ([], {})
    return ReturnClips(clips=(*photos, *written), left_out=left_out)


def _note_plan(folder: Path, videos: Sequence[Path]) -> None:
    """Write beside the folder what its clips are: other versions return at other times.

    Clips of real videos are bound to their files; of several runs there may be clips of each.
    """
    plan = {"fps": FPS, "frames": FRAMES, "back": BACK, "zoom": NEAR.zoom, "size": list(SIZE)}
    path = folder.with_suffix(".json")
    known = read_object(path, WHAT) if path.exists() else {}
    marks = known.pop("videos", {}) if folder.exists() else {}
    if folder.exists() and known != plan:
        raise UserError(f"{folder} has clips of another version: name another --out, or delete it")
    for video in videos:
        mark = _mark(video)
        if mark and marks.setdefault(video.stem, mark) != mark:
            raise UserError(
                f"{folder} has the clip of another video called {video.stem}: name another --out, "
                "or rename it"
            )
    write_json(path, {**plan, "videos": marks} if marks else plan)


def _mark(video: Path) -> str:
    """Return a video's fingerprint; "" where it cannot be read, which making its clip says."""
    try:
        return fingerprint(video)
    except VideoError:
        return ""


def _photo(folder: Path, kind: str, place: int) -> Path:
    photo = PHOTOS[place]
    path = folder / f"{kind}-{Path(photo).stem}.mp4"
    other = CREDITS[(place + 1) % len(CREDITS)].photo
    if not path.exists():
        write_video(path, render_shots(script(kind, photo, other), SECONDS, FPS, SIZE), FPS)
    return path


def script(kind: str, photo: str, other: str) -> tuple[Shot, ...]:
    """Return the shots of a clip that returns to a photograph; `cut` looks at another one."""
    near, far = UNLIKE.get(photo, (NEAR, FAR))
    if kind == "pan":
        leaves = TIMES["pan"].leaves
        return (
            Shot(photo, 0.0, 2.5, "look", near, near),
            Shot(photo, 2.5, 4.5, "pan away", near, far),
            Shot(photo, 4.5, leaves, "look elsewhere", far, far),
            Shot(photo, leaves, RETURN, "pan back", far, near),
            Shot(photo, RETURN, SECONDS, "look again", near, near),
        )
    return (
        Shot(photo, 0.0, 3.5, "look", LOOK, LOOK),
        Shot(other, 3.5, RETURN, "look elsewhere", *UNLIKE.get(other, (NEAR, FAR))),
        Shot(photo, RETURN, SECONDS, "look again", LOOK, LOOK),
    )


def _videos(real: Path) -> list[Path]:
    """Return the videos in a folder and below it, by path; hidden ones are none."""
    found = (path for path in real.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(
        path
        for path in found
        if path.is_file() and not any(x.startswith(".") for x in path.relative_to(real).parts)
    )


def _real(folder: Path, real: Path) -> tuple[list[Path], dict[str, str]]:
    videos = _videos(real)
    if not videos:
        raise UserError(f"{real} holds no video to run back")
    written, left_out = [], {}
    for video in videos:
        path = folder / f"back-{video.stem}.mp4"
        reason = "" if path.exists() else _back(path, video)
        if reason:
            left_out[video.name] = reason
        else:
            written.append(path)
    if not written:
        name, reason = next(iter(left_out.items()))
        raise UserError(f"{real} holds no video to run back; the first, {name}: {reason}")
    return written, left_out


def _back(path: Path, video: Path) -> str:
    """Write a real video run back; return why it cannot be one that leaves a view, else ""."""
    try:
        reason = _stays(video)
        if not reason:
            frames = read_frames(video, fps=FPS, size=_size(video), count=BACK).frames
            write_video(path, chain(frames, frames[FRAMES - 1 - BACK :: -1]), FPS)
    except VideoError as error:
        return str(error)
    return reason


def _stays(video: Path) -> str:
    """Return why a video cannot be used, else "": too short, or its first view is never left."""
    frames = read_frames(video, fps=FPS, size=(128, 224), count=BACK).frames
    if len(frames) < BACK:
        return f"{len(frames) / FPS:.1f} s long, {RETURN:.1f} s are needed"
    returned = frames[: FRAMES - BACK]
    near = float(np.mean([likeness(frames[-1], frame) for frame in returned]))
    return f"never leaves its first view ({near:.1f} dB)" if near > LEFT else ""


def _size(video: Path) -> tuple[int, int]:
    """Return height and width to read a video at, even as players want them."""
    info = probe(video)
    scale = min(1.0, LARGEST / min(info.height, info.width))
    return 2 * round(info.height * scale / 2), 2 * round(info.width * scale / 2)


def likeness(one: Pixels, other: Pixels) -> float:
    """Return the PSNR of two uint8 pictures in dB, 100 at most."""
    error = float(np.mean((one.astype(np.float32) - other.astype(np.float32)) ** 2)) / 255**2
    return float(-10 * np.log10(max(error, 1e-10)))
