"""One picture of what a memory gives back, to be shown elsewhere: strips, labels and a credit."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen
from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError
from ..measure.strips import Strip, StripRow
from ..tools.files import whole_file
from ..tools.pictures import to_pil

PAPER, INK, QUIET = "#ffffff", "#23221f", "#6d6a63"
MARGIN, GAP, LABELS, TEXT = 16, 4, 150, 15  # pixels
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


def save_picture(
    strips: Sequence[Strip], path: Path, *, credit: str = "", width: int = 200
) -> Path:
    """Write strips under each other as one picture, whole or not at all, and give its path.

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
    picture = draw_picture(strips, credit=credit or credit_of(strips), width=width)
    with whole_file(path) as part:
        picture.save(part, format=kind, quality=90)
    return path


def credit_of(strips: Sequence[Strip]) -> str:
    """Return the clips' names and captions, where no other credit is known."""
    said = [f"{s.title}: {s.caption}" if s.caption != s.title else s.title for s in strips]
    return "Clips: " + "; ".join(said) + "."


def draw_picture(strips: Sequence[Strip], *, credit: str, width: int) -> Image.Image:
    """Return the picture; a frame is `width` pixels wide and as high as its shape asks."""
    pen = Pen.of()
    columns = max(len(strip.times) for strip in strips)
    across = 2 * MARGIN + LABELS + columns * (width + GAP) - GAP
    blocks = [_block(strip, across, width, pen) for strip in strips]
    foot = _credit(credit, across, pen)
    picture = Image.new("RGB", (across, sum(b.height for b in blocks) + foot.height), PAPER)
    top = 0
    for block in (*blocks, foot):
        picture.paste(block, (0, top))
        top += block.height
    return picture


@frozen(eq=False, kw_only=True)
class Pen:
    """The fonts: plain, small and bold, with letters and signs of most languages of Europe."""

    plain: ImageFont.FreeTypeFont
    small: ImageFont.FreeTypeFont
    bold: ImageFont.FreeTypeFont

    @classmethod
    def of(cls) -> Pen:
        """Load the fonts that come with matplotlib."""
        from matplotlib import get_data_path

        folder = Path(get_data_path()) / "fonts" / "ttf"
        plain, bold = (str(folder / f"DejaVuSans{kind}.ttf") for kind in ("", "-Bold"))
        return cls(
            plain=ImageFont.truetype(plain, TEXT),
            small=ImageFont.truetype(plain, TEXT - 3),
            bold=ImageFont.truetype(bold, TEXT),
        )


def _block(strip: Strip, across: int, width: int, pen: Pen) -> Image.Image:
    rows, columns = strip.rows[0].frames.shape[-2:]
    height = round(rows * width / columns)
    top = MARGIN + 2 * TEXT + 16
    block = Image.new("RGB", (across, top + len(strip.rows) * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((MARGIN, MARGIN), strip.title, fill=INK, font=pen.bold)
    for column, seconds in enumerate(strip.times):
        middle = MARGIN + LABELS + column * (width + GAP) + width // 2
        place = (middle, top - 6)
        draw.text(place, f"{seconds:.1f} s", fill=QUIET, font=pen.small, anchor="ms")
    for number, row in enumerate(strip.rows):
        _row(block, draw, row, top + number * (height + GAP), (width, height), pen)
    return block


def _row(
    block: Image.Image,
    draw: ImageDraw.ImageDraw,
    row: StripRow,
    top: int,
    size: tuple[int, int],
    pen: Pen,
) -> None:
    middle, figure = top + size[1] // 2, next(iter(row.figures.items()), None)
    draw.text((MARGIN, middle), row.label, fill=INK, font=pen.plain, anchor="ls")
    if figure is not None:
        text = f"{figure[1]:.2f} dB" if figure[0].startswith("psnr") else f"{figure[1]:.3f}"
        draw.text((MARGIN, middle + TEXT + 3), text, fill=QUIET, font=pen.small, anchor="ls")
    for column, frame in enumerate(row.frames):
        small = to_pil(frame).resize(size, Image.Resampling.LANCZOS)
        block.paste(small, (MARGIN + LABELS + column * (size[0] + GAP), top))


def _credit(credit: str, across: int, pen: Pen) -> Image.Image:
    letters = max(20, int((across - 2 * MARGIN) / (pen.small.getlength("n") or 1)))
    lines = textwrap.wrap(credit, letters)
    foot = Image.new("RGB", (across, MARGIN + len(lines) * (TEXT + 3) + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(foot)
    for number, line in enumerate(lines):
        draw.text((MARGIN, 10 + number * (TEXT + 3)), line, fill=QUIET, font=pen.small)
    return foot
