"""Films: photographs under a virtual camera, with random textures and pages of text among them.

A film follows from the names of its pictures, its number and its spec, so that it is the same on
every run. Which further photographs it cuts to is drawn so that one more photograph in the folder
changes only the films that it gets into.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from ..errors import UserError, printable
from ..experiment import FilmSpec, Motions
from ..values.grid import Geometry
from ..video.camera import Framing, Shot, film, upright_size
from ..video.decode import Pixels, VideoError, fingerprint
from ..video.placement import place
from .captions import Caption

VERSION = 1  # of how films are drawn; another one has all of them made anew
TEXTURE, TEXT = "a random texture", "a page of text"  # captions
MOTIONS = tuple(attribute.name for attribute in attrs.fields(Motions))
LETTERS = "etaoinsrhldcumfpgwybvkxjqz"
SHARP = Image.Resampling.LANCZOS
RATIO = 9000  # pixels: fine enough for any aspect
WIDE = ("I", "F")  # Pillow's modes of grey whose numbers may be of any range
DARK = 16  # of fractions up to 255: a picture that has none so bright is taken for no picture
ABOUT_FILES = (UserWarning, RuntimeWarning)  # what Pillow warns of, but for how it is called


@frozen(kw_only=True)
class Picture:
    """Something to film: a photograph in a file, or, where `path` is None, one that is drawn.

    Attributes:
        name: its path below the folder of photographs, as it can be printed.
        caption: what its shots show.
    """

    name: str
    caption: str
    path: Path | None = None


@frozen(kw_only=True)
class Film:
    """One film: its pictures, of which the first is its own photograph, and how it is made."""

    pictures: tuple[Picture, ...]
    number: int
    spec: FilmSpec = field(repr=False)

    @property
    def photos(self) -> tuple[Picture, ...]:
        """The pictures that are in files."""
        return tuple(picture for picture in self.pictures if picture.path is not None)

    def origins(self) -> tuple[str, ...]:
        """Return the fingerprints of its photographs' files.

        Raises:
            VideoError: a file is missing or cannot be read.
        """
        return tuple(fingerprint(photo.path) for photo in self.photos if photo.path is not None)

    def fingerprint(self) -> str:
        """Return what changes with anything that it depends on: 64 hex digits.

        Raises:
            VideoError: as `origins`.
        """
        spec = attrs.asdict(self.spec, filter=attrs.filters.exclude("clips"))
        names = [picture.name for picture in self.pictures]
        made_of = [VERSION, spec, self.number, names, self.origins()]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    def script(self) -> tuple[Shot, ...]:
        """Return its shots; they name pictures, and zoom as far as the spec allows."""
        own = self.pictures[0].name
        return _Script(self.spec, self.pictures, _random(self.spec, own, self.number)).shots()

    def cuts(self) -> tuple[float, ...]:
        """Return the seconds of its hard cuts."""
        script = self.script()
        return tuple(b.start for a, b in zip(script, script[1:], strict=False) if _cut(a, b))

    def captions(self) -> tuple[Caption, ...]:
        """Return what it shows when: the caption of each picture, while it is seen."""
        by_name = {picture.name: picture.caption for picture in self.pictures}
        captions: list[Caption] = []
        for shot in self.script():
            text = by_name[shot.photo]
            if captions and captions[-1].text == text:
                captions[-1] = attrs.evolve(captions[-1], end=shot.end)
            else:
                captions.append(Caption(start=shot.start, end=shot.end, text=text))
        return (*captions[:-1], attrs.evolve(captions[-1], end=None))

    def frames(self, size: tuple[int, int], fps: float) -> Iterator[Pixels]:
        """Yield its frames, uint8 [height, width, 3].

        Args:
            size: width and height.
            fps: frames a second.

        Raises:
            UserError: a photograph cannot be read; said before the first frame is asked for.
        """
        pictures = {picture.name: self._open(picture, size) for picture in self.pictures}
        script = tuple(_within(shot, pictures[shot.photo].size, size) for shot in self.script())
        return film(script, pictures, self.spec.seconds, fps, size)

    def _open(self, picture: Picture, size: tuple[int, int]) -> Image.Image:
        """Return a picture, no larger than the greatest zoom needs."""
        most = self.spec.zoom[1]
        if picture.path is None:
            draw = _texture if picture.caption == TEXTURE else _page
            seed = f"{self.spec.seed}/{self.pictures[0].name}/{self.number}/{picture.name}"
            return draw(random.Random(seed), (round(size[0] * most), round(size[1] * most)))
        photo = open_photo(picture.path)
        factor = most / _greatest_zoom(photo.size, size)
        if factor >= 1:
            return photo
        smaller = max(1, round(photo.width * factor)), max(1, round(photo.height * factor))
        return photo.resize(smaller, SHARP)


def film_size(spec: FilmSpec, area: int, geometry: Geometry, max_aspect: float) -> tuple[int, int]:
    """Return width and height of films: those of the bucket of their aspect.

    Raises:
        UserError: as `place`.
    """
    wide = max(1, round(RATIO * spec.aspect))
    bucket = place(wide, RATIO, area, geometry.multiple, max_aspect)
    return bucket.width, bucket.height


def film_chunks(
    one: Film, size: tuple[int, int], fps: float, chunk: int, count: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a film in chunks uint8 [n ≤ `chunk`, height, width, 3].

    Args:
        one: the film.
        size: width and height of its frames.
        fps: frames a second.
        chunk: frames in a chunk.
        count: at most so many frames; None: all.

    Raises:
        UserError: as `Film.frames`.
    """
    frames = islice(one.frames(size, fps), count)
    while some := list(islice(frames, chunk)):
        yield np.stack(some)


def open_photo(path: Path) -> Image.Image:
    """Read a picture upright as RGB; of several in a file the first.

    What Pillow warns of is not said here, but noted by `check_photo`.

    Raises:
        UserError: it cannot be read (one line, with reason).
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            return _rgb(ImageOps.exif_transpose(file))
    except MemoryError:
        raise
    except Exception as error:  # whatever a single file does
        raise VideoError(path, _why(error)) from None


def check_photo(path: Path, notes: list[str]) -> str:
    """Return why a file cannot be read to its end as a picture; "" where it can.

    Args:
        path: of the file.
        notes: what Pillow warns of is added, a line each.
    """
    name = printable(path.name)
    try:
        with warnings.catch_warnings(record=True, action="always") as caught:
            with Image.open(path) as file:
                file.draft(None, (1, 1))  # a JPEG as small as can be: faster, and read to its end
                upright = ImageOps.exif_transpose(file)
                _rgb(upright if upright.mode in WIDE else upright.crop((0, 0, 1, 1)))
    except MemoryError:  # said of each film that shows it
        return ""
    except Exception as error:  # whatever a single file does
        return f"{name}: {_why(error)}"
    said = [_said(one.message) for one in caught if issubclass(one.category, ABOUT_FILES)]
    notes += [f"{name}: read, with a warning ({text})" for text in dict.fromkeys(said)]
    return ""


def _rgb(picture: Image.Image) -> Image.Image:
    """Return a picture as RGB; grey of more than 8 bits is scaled, which `convert` would clip.

    Files of whole numbers with 32 bits, and of fractions, do not say which of them is white: that
    is 255 or 65535, or 1 or 255, whatever holds all of them.

    Raises:
        UserError: none of these does.
    """
    if picture.mode.startswith("I;"):  # 16 bits
        return _grey(np.asarray(picture, np.int64) >> 8)
    if picture.mode in WIDE:
        values = np.asarray(picture)
        low, high = float(values.min()), float(values.max())
        most = 65535 if picture.mode == "I" else 255
        if not 0 <= low <= high <= most or (picture.mode == "F" and 1 < high < DARK):
            raise UserError(
                f"its greys are {low:g} to {high:g}, which does not tell how bright white is: save "
                "it with 8 or 16 bits"
            )
        if picture.mode == "I":
            return _grey(values >> 8 if high > 255 else values)
        if high <= 1:
            return _grey(np.round(255.0 * values))
    return picture.convert("RGB")


def _grey(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UserError):
        return f"cannot be read as a picture: {error}"
    if isinstance(error, UnidentifiedImageError):  # names the path again
        return "cannot be read as a picture"
    return f"cannot be read as a picture ({_said(error)})"


def _said(error: Exception | str) -> str:
    """Return kind and text of an error or a warning on one line."""
    text = printable(" ".join(str(error).split()))[:200]
    return f"{type(error).__name__}: {text}"


def make_films(photos: Sequence[Picture], spec: FilmSpec) -> list[Film]:
    """Return the films of some photographs, `spec.clips` of each."""
    return [
        Film(pictures=_pictures(photo, photos, number, spec), number=number, spec=spec)
        for photo in photos
        for number in range(1, spec.clips + 1)
    ]


def _pictures(
    own: Picture, photos: Sequence[Picture], number: int, spec: FilmSpec
) -> tuple[Picture, ...]:
    """Return a film's pictures: its own, then others, each of which may be drawn instead."""
    rng = _random(spec, own.name, number)
    ranked = iter(_ranked(own, photos, number, spec))
    others: list[Picture] = []
    for nth in range(1, spec.photos):
        kind = rng.random()
        if kind < spec.textures:
            others.append(Picture(name=f"{nth}. {TEXTURE}", caption=TEXTURE))
        elif kind < spec.textures + spec.texts:
            others.append(Picture(name=f"{nth}. {TEXT}", caption=TEXT))
        elif (other := next(ranked, None)) is not None:
            others.append(other)
    return (own, *others)


def _ranked(own: Picture, photos: Sequence[Picture], number: int, spec: FilmSpec) -> list[Picture]:
    """Return the other photographs in an order that each one's name alone has its place in."""

    def rank(photo: Picture) -> bytes:
        return hashlib.sha256(
            f"{spec.seed}/{own.name}/{number}/{photo.name}".encode("utf-8", "surrogateescape")
        ).digest()

    return sorted((photo for photo in photos if photo.name != own.name), key=rank)


def _random(spec: FilmSpec, name: str, number: int) -> random.Random:
    return random.Random(f"{spec.seed}/{name}/{number}")


def _cut(before: Shot, after: Shot) -> bool:
    return before.photo != after.photo or before.last != after.first


def _greatest_zoom(photo: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the zoom at which a picture is seen pixel for pixel; below 1 it is too small."""
    return min(photo[0] / size[0], photo[1] / size[1])


def _within(shot: Shot, photo: tuple[int, int], size: tuple[int, int]) -> Shot:
    """Return a shot that zooms no further than its picture's pixels go."""

    def held(framing: Framing) -> Framing:
        wide, high = upright_size(size, framing.turn)
        most = max(1.0, min(photo[0] / wide, photo[1] / high))
        return attrs.evolve(framing, zoom=min(framing.zoom, most))

    return attrs.evolve(shot, first=held(shot.first), last=held(shot.last))


@frozen
class _Script:
    """Draws the shots of a film, one after another."""

    spec: FilmSpec
    pictures: tuple[Picture, ...]
    rng: random.Random

    def shots(self) -> tuple[Shot, ...]:
        shots: list[Shot] = []
        end = 0.0
        while end < self.spec.seconds - 1e-6:
            start, end = end, self._end(end)
            shots.append(self._shot(shots, start, end))
        return tuple(shots)

    def _end(self, start: float) -> float:
        """Return when a shot ends; one that would leave too little for another lasts longer."""
        end = start + self.rng.uniform(*self.spec.shot)
        return self.spec.seconds if end > self.spec.seconds - self.spec.shot[0] else end

    def _shot(self, before: Sequence[Shot], start: float, end: float) -> Shot:
        if not before:
            return self._moving(self.pictures[0].name, self._view(), start, end)
        last = before[-1]
        back, cut = (self.rng.random() < share for share in (self.spec.returns, self.spec.cuts))
        earlier = [shot for shot in before if (shot.photo, shot.first) != (last.photo, last.last)]
        if back and earlier:
            here = [shot for shot in earlier if shot.photo == last.photo]
            if here and not cut:
                to = self.rng.choice(here).first
                return Shot(last.photo, start, end, "back", last.last, to)
            to_shot = self.rng.choice(earlier)
            return self._moving(to_shot.photo, to_shot.first, start, end)
        if cut:
            return self._moving(self.rng.choice(self.pictures).name, self._view(), start, end)
        return self._moving(last.photo, last.last, start, end)

    def _moving(self, photo: str, first: Framing, start: float, end: float) -> Shot:
        """Return a shot from a view on, with one of the motions."""
        move = self.rng.choices(MOTIONS, weights=attrs.astuple(self.spec.motions))[0]
        new = self._view(self.rng.uniform(-self.spec.angle, self.spec.angle))
        fields = {"pan": ("across", "down"), "zoom": ("zoom",), "turn": ("turn",), "still": ()}
        names = fields.get(move, ("across", "down", "zoom", "turn"))
        last = attrs.evolve(first, **{name: getattr(new, name) for name in names})
        return Shot(photo, start, end, move, first, last)

    def _view(self, turn: float = 0.0) -> Framing:
        low, high = (math.log(zoom) for zoom in self.spec.zoom)
        across, down = self.rng.random(), self.rng.random()
        return Framing(across, down, math.exp(self.rng.uniform(low, high)), turn)


def _texture(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Draw a texture: noise of several grains between random colours, with stripes or without."""
    numbers = np.random.default_rng(rng.getrandbits(64))
    fall = rng.uniform(0.45, 1.0)  # of each finer grain beside the one before
    field_ = np.zeros((size[1], size[0]))
    grain = max(size) / 2
    while grain >= 2:
        cells = math.ceil(size[1] / grain) + 1, math.ceil(size[0] / grain) + 1
        small = Image.fromarray(numbers.standard_normal(cells).astype(np.float32))
        wide = np.asarray(small.resize(size, Image.Resampling.BICUBIC))
        field_ += wide * fall ** math.log2(max(size) / grain)
        grain /= 2
    if rng.random() < 0.5:
        angle, period = rng.uniform(0, math.pi), rng.uniform(6, max(size) / 4)
        rows, columns = np.mgrid[: size[1], : size[0]]
        along = rows * math.sin(angle) + columns * math.cos(angle)
        field_ += rng.uniform(0.5, 2) * np.sin(2 * math.pi * along / period)
    level = (field_ - field_.min()) / max(float(np.ptp(field_)), 1e-6)
    stops = numbers.integers(0, 256, (rng.randint(2, 4), 3)).astype(float)
    at = np.linspace(0, 1, len(stops))
    colours = [np.interp(level, at, stops[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(colours, axis=-1).round().astype(np.uint8))


def _page(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Draw a page of random words, dark on light or light on dark."""
    paper = tuple(rng.randint(170, 255) for _ in range(3))
    ink = tuple(rng.randint(0, 100) for _ in range(3))
    if rng.random() < 0.3:
        paper, ink = ink, paper
    page = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(page)
    height = size[1] / rng.uniform(6, 20)
    font = ImageFont.load_default(height)
    down, margin = 0.5 * height, round(0.5 * height)
    while down < size[1]:
        words = [_word(rng) for _ in range(math.ceil(size[0] / (2 * height)))]
        draw.text((margin, down), " ".join(words), fill=ink, font=font)
        down += 1.4 * height
    return page


def _word(rng: random.Random) -> str:
    weights = range(len(LETTERS), 0, -1)
    word = "".join(rng.choices(LETTERS, weights=weights, k=rng.randint(2, 9)))
    return word.capitalize() if rng.random() < 0.15 else word
