"""Choose the constants of the DCT codec from real clips, and print how well they do.

python -m longtake.experiments.fit_dct --videos DIR [--out DIR] [--check DIR]

Reads every video of DIR at three sizes, keeps the coefficients of greatest mean energy (each size
counts alike) and writes `dct16.json` and `dct48.json`. `--check` reads other clips and prints the
PSNR of the constants that ship.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from einops import rearrange
from torch import Tensor

from ..backbones.codecs.blocks import BLOCK, to_blocks
from ..backbones.codecs.dct import DctCodec, full_basis
from ..backbones.codecs.specs import Dct
from ..core.data.sources import find_sources
from ..core.errors import UserError
from ..core.interfaces.codec import from_bytes
from ..core.plugin_errors import exit_code
from ..core.tools.files import check_out_folder, whole_file
from ..core.video.read import read_frames
from .common import codec_psnr

COUNTS = (16, 48)
CODECS = Path(__file__).resolve().parents[1] / "backbones" / "codecs"


@frozen
class ReadFormat:
    """A way to read a clip: height and width in pixels, frames a second, frames at most."""

    height: int
    width: int
    fps: float
    count: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width} at {self.fps:g} fps, first {self.count} frames"


FORMATS = (
    ReadFormat(96, 160, 8.0, 81),
    ReadFormat(192, 320, 8.0, 25),
    ReadFormat(288, 480, 16.0, 25),
)


@frozen(eq=False)
class Moments:
    """First and second moments of all 768 coefficients over blocks of pixels.

    Attributes:
        first, second: means of the coefficients and of their squares, float64 `[768]`.
        blocks: that were counted.
    """

    first: Tensor
    second: Tensor
    blocks: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, write and check, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=Path, help="folder of clips to fit on")
    parser.add_argument("--out", type=Path, default=CODECS, help="where JSON goes")
    parser.add_argument("--check", type=Path, help="folder of clips to measure on")
    args = parser.parse_args(arguments)
    if args.videos is not None:
        check_out_folder(args.out)
        for channels, fitted in fit(args.videos).items():
            _write(args.out / f"dct{channels}.json", fitted)
    for line in check(args.check) if args.check else ():
        print(line, flush=True)


def fit(videos: Path) -> dict[int, dict[str, Any]]:
    """Return the constants for each number of channels, with where they come from.

    Raises:
        UserError: the folder holds no videos, or one of them cannot be read.
    """
    paths = [source.path for source in find_sources(videos)]
    moments = [moments_of(paths, form) for form in FORMATS]
    first = torch.stack([m.first for m in moments]).mean(dim=0)
    second = torch.stack([m.second for m in moments]).mean(dim=0)
    blocks = {str(v): m.blocks for v, m in zip(FORMATS, moments, strict=True)}
    source = {"clips": [path.name for path in paths], "blocks": blocks}
    return {count: _strongest(first, second, count) | {"fitted_on": source} for count in COUNTS}


def moments_of(paths: Sequence[Path], form: ReadFormat) -> Moments:
    """Return the moments of all whole blocks of four frames after the first frame."""
    basis = full_basis()
    total = Moments(torch.zeros(len(basis)).double(), torch.zeros(len(basis)).double(), 0)
    for path in paths:
        frames = _read(path, form)[:, :, 1:]
        whole = frames[:, :, : frames.shape[2] // BLOCK.time * BLOCK.time]
        values = (to_blocks(whole).flatten(0, -2) @ basis.float().T).double()
        total = Moments(
            total.first + values.sum(dim=0),
            total.second + values.square().sum(dim=0),
            total.blocks + len(values),
        )
    return Moments(total.first / total.blocks, total.second / total.blocks, total.blocks)


def _strongest(first: Tensor, second: Tensor, count: int) -> dict[str, Any]:
    rows = second.argsort(descending=True)[:count].sort().values
    std = (second - first.square()).sqrt()
    sides = (3, BLOCK.time, BLOCK.height, BLOCK.width)
    places = torch.stack(torch.unravel_index(rows, sides), dim=1)
    return {
        "indices": places.tolist(),
        "mean": [round(x, 6) for x in first[rows].tolist()],
        "std": [round(x, 6) for x in std[rows].tolist()],
        "energy_kept": round(float(second[rows].sum() / second.sum()), 6),
    }


def check(videos: Path) -> Iterator[str]:
    """Yield a line for each format and channel count: mean PSNR over clips (of frame means), dB."""
    paths = [source.path for source in find_sources(videos)]
    for form in FORMATS:
        for channels in COUNTS:
            codec = DctCodec(Dct(channels=channels))
            values = [codec_psnr(codec, _read(path, form)) for path in paths]
            yield f"{channels} channels, {form}: {sum(values) / len(values):.2f} dB"


def _read(path: Path, form: ReadFormat) -> Tensor:
    clip = read_frames(
        path,
        fps=form.fps,
        size=(form.height, form.width),
        count=form.count,
        minimum=5,
    )
    return rearrange(from_bytes(torch.from_numpy(clip.frames)), "f h w c -> 1 c f h w")


def _write(file: Path, fitted: dict[str, Any]) -> None:
    lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in fitted.items())
    with whole_file(file) as part:
        part.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(exit_code(error, "fit_dct"))
