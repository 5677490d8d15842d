"""One picture of what a memory gives back, to be shown elsewhere: strips, labels and a credit."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen
from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError
from ..measure.strips import Strip
from ..measure.verdict import format_figure
from ..tools.files import whole_file
from ..tools.pictures import to_pil

PAPER, INK, QUIET = "#ffffff", "#23221f", "#6d6a63"
MARGIN, GAP, LABELS, TEXT = 16, 4, 150, 15  # pixels
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


def save_picture(
    strips: Sequence[Strip], path: Path, *, credit: str = "", width: int = 200
) -> Path:
    """Write strips under each other as one picture, whole or not at all, and return its path.

    Each strip has a row for what it shows (original, ceiling, retrievers, floor) with its figure,
    and a column for each time; white ground, so that it reads on any page.

    Args:
        strips: of `make_strips`.
        path: ends in .jpg, .png or .webp; its folder is made.
        credit: who made the clips, under what licence; default: their names and captions.
        width: of a frame, pixels.

    Raises:
        UserError: there is no strip, the ending is another, or the file cannot be written.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: a picture ends in {', '.join(FORMATS)}")
    if not strips:
        raise UserError("a picture needs at least one clip")
    picture = draw_picture(strips, credit=credit or default_credit(strips), width=width)
    with whole_file(path) as part:
        picture.save(part, format=kind, quality=90)
    return path


def default_credit(strips: Sequence[Strip]) -> str:
    """Return the clips' names and captions, where no other credit is known."""
    clips = [f"{s.title}: {s.caption}" if s.caption != s.title else s.title for s in strips]
    return "Clips: " + "; ".join(clips) + "."


@frozen(eq=False, kw_only=True)
class Fonts:
    """Plain, small and bold fonts, with letters and signs of most languages of Europe."""

    plain: ImageFont.FreeTypeFont
    small: ImageFont.FreeTypeFont
    bold: ImageFont.FreeTypeFont

    @classmethod
    def load(cls) -> Fonts:
        """Load the fonts that come with matplotlib."""
        from matplotlib import get_data_path

        folder = Path(get_data_path()) / "fonts" / "ttf"
        plain, bold = (str(folder / f"DejaVuSans{kind}.ttf") for kind in ("", "-Bold"))
        return cls(
            plain=ImageFont.truetype(plain, TEXT),
            small=ImageFont.truetype(plain, TEXT - 3),
            bold=ImageFont.truetype(bold, TEXT),
        )


def draw_picture(strips: Sequence[Strip], *, credit: str, width: int) -> Image.Image:
    """Return the picture; a frame is `width` pixels wide and as high as its shape asks."""
    fonts = Fonts.load()
    columns = max(len(strip.times) for strip in strips)
    across = 2 * MARGIN + LABELS + columns * (width + GAP) - GAP
    blocks = [_draw_strip(strip, across, width, fonts) for strip in strips]
    blocks.append(_draw_credit(credit, across, fonts))
    picture = Image.new("RGB", (across, sum(block.height for block in blocks)), PAPER)
    top = 0
    for block in blocks:
        picture.paste(block, (0, top))
        top += block.height
    return picture


def _draw_strip(strip: Strip, across: int, width: int, fonts: Fonts) -> Image.Image:
    rows, columns = strip.rows[0].frames.shape[-2:]
    height = round(rows * width / columns)
    head = MARGIN + 2 * TEXT + 16
    block = Image.new("RGB", (across, head + len(strip.rows) * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(block)
    lefts = [MARGIN + LABELS + column * (width + GAP) for column in range(len(strip.times))]
    draw.text((MARGIN, MARGIN), strip.title, fill=INK, font=fonts.bold)
    for left, seconds in zip(lefts, strip.times, strict=True):
        place = (left + width // 2, head - 6)
        draw.text(place, f"{seconds:.1f} s", fill=QUIET, font=fonts.small, anchor="ms")
    for number, row in enumerate(strip.rows):
        top = head + number * (height + GAP)
        middle = top + height // 2
        draw.text((MARGIN, middle), row.label, fill=INK, font=fonts.plain, anchor="ls")
        figures = [format_figure(row.figures[m.name], m) for m in strip.metrics if row.figures]
        for text in figures[:1]:
            place = (MARGIN, middle + TEXT + 3)
            draw.text(place, text, fill=QUIET, font=fonts.small, anchor="ls")
        for left, frame in zip(lefts, row.frames, strict=True):
            small = to_pil(frame).resize((width, height), Image.Resampling.LANCZOS)
            block.paste(small, (left, top))
    return block


def _draw_credit(credit: str, across: int, fonts: Fonts) -> Image.Image:
    letters = max(20, int((across - 2 * MARGIN) / (fonts.small.getlength("n") or 1)))
    lines = textwrap.wrap(credit, letters)
    block = Image.new("RGB", (across, MARGIN + len(lines) * (TEXT + 3) + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        draw.text((MARGIN, 10 + number * (TEXT + 3)), line, fill=QUIET, font=fonts.small)
    return block
