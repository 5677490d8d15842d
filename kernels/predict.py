"""How long convs and an appended attention should take, worked out before any was measured.

    python -m longtake.kernels.predict            prints prediction.md

Time is the greatest of these: the products on the tensor units, stretched by the instructions that
the main loop issues beside them (`configs/compiled.json`); what a program reads again from the L2
cache; and bytes of memory that must move once. Where a chunk is appended work is so small that a
fourth may decide: how long a program waits for its numbers. The GPU day is held against it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

from attrs import frozen

from .aot import CASES, Case, resources, tile_of
from .conv3d_act import out_size, step_count
from .tiles import Tile, pick, shares

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
        expected: with padding, whole waves, issue, L2 and waiting.
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
    steps = step_count(case.channels, case.kernel, tile.bk)
    split = shares(tiles, steps, card.processors)
    # tiles that pass, some of them empty
    waves = -(-tiles * split // card.processors) * card.processors / split
    sums = 2 * 4 * split * cells * case.outputs if split > 1 else 0  # float32, written and read
    issue = resources(case, card.target).issue
    again = tiles * per_tile * BYTES * (1 / tile.bm + 1 / tile.bn) / 2
    times = {
        "products": waves * per_tile / card.flops * (1 + issue),
        "L2": (again + sums) / card.cache,
        "memory": memory,
        # shares are added by a kernel more
        "waiting": WAIT * (1 if split == 1 else 2) + STEP_WAIT * steps / split,
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


APPENDED = (  # convs of Wan 14B or HunyuanVideo 4×4×2 for 6 latents, with the tails before them
    Layer(case="in 16→64", frames=(8, 60, 104)),
    Layer(case="time 64→128", frames=(7, 60, 104)),
    Layer(case="space 128→256", frames=(5, 60, 104)),
    Layer(case="space 256→512", frames=(5, 30, 52)),
    Layer(case="append 512→512", frames=(5, 16, 26)),
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
    yield from _append()


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
        parts = {kind: [predict_chunk(kind, cells, card) for card in CARDS] for kind in ATTENTION}
        yield from _table("kernel", parts, unit=1e3, digits=2, gflop=2)


def _append() -> Iterator[str]:
    yield ""
    yield "# How long an appended second should take"
    yield ""
    yield (
        "All convs and the attention layer of a step, 14B 4×4×2, bfloat16, **microseconds**, as "
        "above. Shares of the sums (conv3d_act.md) are in it; copies of tails,"
    )
    yield (
        "tokens and launches are not. Asked of an H200 is 150 with them, by `GraphedStep`; "
        "`longtake bench kernels` judges it."
    )
    yield ""
    rows = {layer.case: [predict(layer, card) for card in CARDS] for layer in APPENDED}
    rows |= {
        f"attention, {kind}": [predict_chunk(kind, 104, card) for card in CARDS]
        for kind in ATTENTION
    }
    yield from _table("kernel", rows, unit=1e3, digits=1, gflop=1)


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
        rows = {layer.case: [predict(layer, card) for card in CARDS] for layer in layers}
        yield from _table("conv", rows, unit=1, digits=3, gflop=0)


def _table(
    first: str, rows: Mapping[str, list[Prediction]], *, unit: float, digits: int, gflop: int
) -> Iterator[str]:
    """Yield a table of predictions of every card by name, and their sum, in `unit` of a ms."""

    def cells(name: str, found: Sequence[Prediction]) -> str:
        times = [
            f"{unit * x.floor:.{digits}f} | {unit * x.expected:.{digits}f} | {x.bound}"
            for x in found
        ]
        return f"| {name} | {found[0].gflop:.{gflop}f} | {' | '.join(times)} |"

    heads = [f"{card.name} floor | expected | bound" for card in CARDS]
    yield f"| {first} | GFLOP | {' | '.join(heads)} |"
    yield "|---|---|" + "---|" * (3 * len(CARDS))
    for name, found in rows.items():
        yield cells(name, found)
    by_card = zip(*rows.values(), strict=True)
    yield cells("all", [_sum(found) for found in by_card])


def _sum(found: Sequence[Prediction]) -> Prediction:
    return Prediction(
        gflop=sum(x.gflop for x in found),
        floor=sum(x.floor for x in found),
        expected=sum(x.expected for x in found),
        bound="",
    )


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
