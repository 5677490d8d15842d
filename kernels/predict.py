"""How long convs and an appended attention should take, worked out before any was measured.

    python -m longtake.kernels.predict            prints prediction.md

Time is the greatest of three: the products on the tensor units, stretched by the instructions that
the main loop issues beside them (`configs/compiled.json`); what a program reads again from the L2
cache; and bytes of memory that must move once. Attention of an appended chunk is so small that a
fourth decides: how long a program waits for its numbers. The GPU day is held against it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from attrs import frozen

from .aot import CASES, Case, resources, tile_of
from .conv3d_act import out_size, step_count
from .tiles import Tile, pick

Triple = tuple[int, int, int]
BYTES = 2  # of bfloat16
WAIT = 0.6e-6  # seconds until a program has its first numbers; assumed, of any card
STEP_WAIT = 0.15e-6  # of each step more: an access to L2 over the steps whose loads are under way


@frozen(kw_only=True)
class Card:
    """Ceilings of a card.

    Attributes:
        name: of the card.
        target: that kernels are compiled for.
        flops: a second, bfloat16 summed in float32.
        memory: bytes a second that are read and written.
        cache: bytes a second from L2.
        processors: that hold programs.
    """

    name: str
    target: str
    flops: float
    memory: float
    cache: float
    processors: int


CARDS = (
    Card(
        name="RTX 4070", target="sm_89", flops=58.3e12, memory=0.504e12, cache=1.6e12,
        processors=46,
    ),
    Card(name="H100", target="sm_90", flops=790e12, memory=3.0e12, cache=5.5e12, processors=132),
    Card(name="H200", target="sm_90", flops=790e12, memory=4.3e12, cache=5.5e12, processors=132),
)  # fmt: skip


@frozen(kw_only=True)
class Layer:
    """A conv of an encoder on 20 s of 480×832 at 24 fps.

    Attributes:
        case: of `aot.CASES`, whose compiled loop it runs.
        frames: new and tail, of the buffer that it reads, with rows and columns.
    """

    case: str
    frames: Triple


ENCODERS: dict[str, tuple[Layer, ...]] = {
    "Wan 14B or HunyuanVideo, 4×4×2": (
        Layer(case="in 16→64", frames=(123, 60, 104)),
        Layer(case="time 64→128", frames=(123, 60, 104)),
        Layer(case="space 128→256", frames=(63, 60, 104)),
        Layer(case="space 256→512", frames=(63, 30, 52)),
        Layer(case="space 512→512", frames=(63, 16, 26)),
    ),
    "Wan2.2-5B, 2×2×2": (
        Layer(case="in 48→64", frames=(123, 32, 52)),
        Layer(case="time 64→128", frames=(123, 32, 52)),
        Layer(case="space 128→256", frames=(63, 32, 52)),
        Layer(case="space 256→512", frames=(63, 16, 26)),
    ),
}


@frozen(kw_only=True)
class Prediction:
    """Milliseconds of a kernel on a card, and what bounds it.

    Attributes:
        gflop: of the products that count.
        floor: at the card's ceilings.
        expected: with padding, whole waves, issue and L2, and of attention the waiting.
        bound: products, L2, memory or waiting.
    """

    gflop: float
    floor: float
    expected: float
    bound: str


def predict(layer: Layer, card: Card) -> Prediction:
    """Return how long a conv should take on a card."""
    case = next(one for one in CASES if one.name == layer.case)
    size = out_size(layer.frames, case.kernel, case.stride)
    cells = size[0] * size[1] * size[2]
    taps = case.kernel[0] * case.kernel[1] * case.kernel[2]
    flop = 2 * cells * case.outputs * taps * case.channels
    read = layer.frames[0] * layer.frames[1] * layer.frames[2] * case.channels
    weights = taps * case.channels * case.outputs
    memory = BYTES * (read + cells * case.outputs + weights) / card.memory
    tile = _tile(case, cells, card)
    per_tile = 2 * tile.bm * tile.bn * tile.bk * step_count(case.channels, case.kernel, tile.bk)
    tiles = -(-cells // tile.bm) * -(-case.outputs // tile.bn)
    waves = -(-tiles // card.processors) * card.processors  # tiles that pass, some of them empty
    issue = resources(case, card.target).issue
    times = {
        "products": waves * per_tile / card.flops * (1 + issue),
        "L2": tiles * per_tile * BYTES * (1 / tile.bm + 1 / tile.bn) / 2 / card.cache,
        "memory": memory,
    }
    bound = max(times, key=times.__getitem__)
    return Prediction(
        gflop=flop / 1e9,
        floor=1e3 * max(flop / card.flops, memory),
        expected=1e3 * times[bound],
        bound=bound,
    )


def _tile(case: Case, rows: int, card: Card) -> Tile:
    return pick(
        int(card.target[3:]), channels=case.channels, outputs=case.outputs, rows=rows, norm=False
    )


CHUNKS = {
    "Wan 14B or HunyuanVideo 4×4×2, or Wan2.2-5B 2×2×2: 8×13 cells a frame": 104,
    "Wan 14B or HunyuanVideo 2×2×2: 15×26 cells a frame": 390,
}
ATTENTION = ("norm", "qkv", "window", "out")  # the kernels, in their order
NEW = 3  # memory frames of an appended second, behind as many of a window of four


def predict_chunk(kind: str, cells: int, card: Card) -> Prediction:
    """Return how long a kernel of `chunk_attention` should take for a second that is appended.

    Args:
        kind: norm, qkv, window or out, at 512 features and 8 heads of 64.
        cells: of a memory frame.
        card: that it runs on.
    """
    case = next(
        one
        for one in CASES
        if (one.kind, one.cells, one.dtype, one.head_width) == (kind, cells, "bf16", 64)
    )
    tile, width, inner = tile_of(case, card.target), case.channels, case.outputs
    rows = NEW * cells
    heads, seen = inner // case.head_width, case.window * cells
    before = (case.window - 1) * cells
    flop, moved, tiles, steps = {
        # what stands in a window before the new frames is read and written, and no state of it
        "norm": (0, 2 * rows * width + 2 * 2 * before * inner, 0, 0),
        "qkv": (
            2 * rows * width * 3 * inner, rows * (width + 5 * inner) + 3 * inner * width,
            -(-rows // tile.bm) * 3 * -(-inner // tile.bn), -(-width // tile.bk),
        ),
        "window": (
            4 * rows * seen * inner, 2 * (rows + rows + before) * inner,
            NEW * -(-cells // tile.bm) * heads, -(-seen // tile.bn),
        ),
        "out": (
            2 * rows * inner * width, rows * (inner + 2 * width) + inner * width,
            -(-rows // tile.bm) * -(-width // tile.bn), -(-inner // tile.bk),
        ),
    }[kind]  # fmt: skip
    sums = 2 if kind == "window" else 1  # products a step
    per_tile = sums * 2 * tile.bm * tile.bn * tile.bk * steps
    waves = -(-tiles // card.processors) * card.processors
    read = (2 * tile.bn if kind == "window" else tile.bm + tile.bn) * tile.bk * steps
    issue = resources(case, card.target).issue
    times = {
        "products": waves * per_tile / card.flops * (1 + issue),
        "L2": tiles * read * BYTES / card.cache,
        "memory": BYTES * moved / card.memory,
        "waiting": WAIT + STEP_WAIT * steps,
    }
    bound = max(times, key=times.__getitem__)
    return Prediction(
        gflop=flop / 1e9,
        floor=1e3 * max(flop / card.flops, times["memory"]),
        expected=1e3 * times[bound],
        bound=bound,
    )


def page() -> Iterator[str]:
    """Yield the lines of prediction.md."""
    yield from _convs()
    yield from _chunks()


def _chunks() -> Iterator[str]:
    yield ""
    yield "# How long `chunk_attention` should take"
    yield ""
    yield (
        "One layer for a second that is appended (3 memory frames behind 3, 512 features, 8 heads "
        "of 64), bfloat16, **microseconds**. Keys, values and weights"
    )
    yield (
        f"of a layer fit into L2, so *memory* is a first touch. *Waiting* is assumed, not known: "
        f"{WAIT * 1e6:g} µs until a program has its first numbers, {STEP_WAIT * 1e6:g} a step more."
    )
    yield (
        "Launches are not in it: four here, nine operators of the library (chunk_attention.md); "
        "inside a CUDA graph one costs about 1.5 µs, outside 5 and more."
    )
    for name, cells in CHUNKS.items():
        yield ""
        yield f"## {name}"
        yield ""
        heads = [f"{card.name} floor | expected | bound" for card in CARDS]
        yield f"| kernel | GFLOP | {' | '.join(heads)} |"
        yield "|---|---|" + "---|" * (3 * len(CARDS))
        table = [[predict_chunk(kind, cells, card) for card in CARDS] for kind in ATTENTION]
        for kind, row in zip(ATTENTION, table, strict=True):
            found = [f"{1e3 * x.floor:.2f} | {1e3 * x.expected:.2f} | {x.bound}" for x in row]
            yield f"| {kind} | {row[0].gflop:.2f} | {' | '.join(found)} |"
        sums = [
            f"{sum(1e3 * row[i].floor for row in table):.2f} | "
            f"{sum(1e3 * row[i].expected for row in table):.2f} | "
            for i in range(len(CARDS))
        ]
        yield f"| all | {sum(row[0].gflop for row in table):.2f} | {' | '.join(sums)} |"


def _convs() -> Iterator[str]:
    yield "# How long `conv3d_act` should take"
    yield ""
    yield (
        "Made by `python -m longtake.kernels.predict` from the tables in `configs/` before any "
        "card was at hand; the day on a GPU is held against it."
    )
    yield (
        "bfloat16, one video of 20 s, 480×832 at 24 fps, milliseconds: *floor* is the card's "
        "ceiling; *expected* has padding to tiles, whole waves of programs,"
    )
    yield (
        "1 + issue (instructions a tensor cycle, as if none overlapped) and what programs read "
        "again from L2. Launches, about 5 µs each, are not in it."
    )
    yield ""
    yield "Ceilings: " + "; ".join(_ceilings(card) for card in CARDS) + "."
    for name, layers in ENCODERS.items():
        yield ""
        yield f"## {name}"
        yield ""
        heads = [f"{card.name} floor | expected | bound" for card in CARDS]
        yield f"| conv | GFLOP | {' | '.join(heads)} |"
        yield "|---|---|" + "---|" * (3 * len(CARDS))
        table = [[predict(layer, card) for card in CARDS] for layer in layers]
        for layer, row in zip(layers, table, strict=True):
            cells = [f"{one.floor:.3f} | {one.expected:.3f} | {one.bound}" for one in row]
            yield f"| {layer.case} | {row[0].gflop:.0f} | {' | '.join(cells)} |"
        sums = [
            f"{sum(row[i].floor for row in table):.3f} | "
            f"{sum(row[i].expected for row in table):.3f} | "
            for i in range(len(CARDS))
        ]
        total = sum(row[0].gflop for row in table)
        yield f"| all | {total:.0f} | {' | '.join(sums)} |"


def _ceilings(card: Card) -> str:
    return (
        f"{card.name} {card.flops / 1e12:g} TFLOP/s, memory {card.memory / 1e12:g} TB/s, "
        f"L2 {card.cache / 1e12:g} TB/s, {card.processors} processors"
    )


def main() -> int:
    """Print the page."""
    print("\n".join(page()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
