"""Show what grows with scale and what does not: an append, the bookkeeping of a store, a plan.

    python -m longtake.experiments.scale --out experiments/results/scale.json

- A second of video is appended to the encoder of Wan 2.2 5B at 2×2×2, over and over, up to an hour,
  on small frames (an append does the same work on large ones): time, state and new tokens.
- A store of 100 to 10,000 clips is cached again, all of it unchanged: what a resumed `cache` takes
  for a clip, to open the store, and to index one clip more.
- The windows of a training step are drawn from 1,000 to 100,000 clips.

Seconds are CPU seconds of one thread, since other work on the machine lengthens any other. The
picture lies beside the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen

from ..core.cache.cache import cache
from ..core.data.sources import find_sources
from ..core.data.store import Record, Store, clip_path, read_index
from ..core.data.windows import WindowSampler
from ..core.errors import UserError
from ..core.experiment import Experiment
from ..core.interfaces.compressor import State
from ..core.kernel_bench.setups import EncoderSetup, encoder_setups
from ..core.model import all_needs, compressor_needs
from ..core.plugin_errors import exit_code
from ..core.tools.files import (
    append_json_line,
    check_out_file,
    read_json_lines,
    whole_file,
    write_json,
)
from ..core.values.history import History
from ..core.values.memory import Memory
from ..core.video.builtin_clip import write_builtin_clip
from .common import commit, machine_facts, tinier
from .tiny import TINY_WAN_2X2X2

ENCODER = "wan22-5b 2x2x2"
HEIGHT, WIDTH = 96, 160  # of its frames
AT_ONCE = 4  # seconds of history that are streamed at once, up to the marks
ROUNDS = 15  # appends behind each mark, whose median is its figure
PLANS = 200  # steps that are planned for a figure
APPENDED = 20  # lines that are indexed for a figure
GOAL_PLAN = 5e-3  # seconds, at the most clips
CLIP = Path("000000/clip.mp4")  # all have one name, and so one caption
INDEX = "00000-of-00001.jsonl"

Figures = dict[str, Any]


@frozen(kw_only=True)
class Marks:
    """At what sizes figures are taken, ascending.

    Attributes:
        seconds: of history that a second is appended to.
        stores: clips of a store that is cached again.
        plans: clips that a step is drawn from.
    """

    seconds: tuple[int, ...] = (20, 60, 120, 300, 600, 1200, 2400, 3600)
    stores: tuple[int, ...] = (100, 1_000, 10_000)
    plans: tuple[int, ...] = (1_000, 10_000, 100_000)


TINY = Marks(seconds=(16, 32), stores=(3, 6), plans=(10, 20))


@torch.no_grad()
def appends(marks: Marks) -> list[Figures]:
    """Return the cost of one second more behind histories of several lengths, up to the longest."""
    setups = {setup.name: setup for setup in encoder_setups(tiny=False)}
    setup = attrs.evolve(setups[ENCODER], height=HEIGHT, width=WIDTH)
    device, dtype = torch.device("cpu"), torch.float32
    encoder = setup.encoder(device, dtype).eval()
    second, first = _chunk(setup, 1), setup.history(1.0, device, dtype)
    state, _ = encoder.step(None, first)
    behind, seen = dict[int, tuple[State, int]](), first.size.time
    for seconds in range(AT_ONCE, marks.seconds[-1] + 1, AT_ONCE):
        state, _ = encoder.step(state, _at(_chunk(setup, AT_ONCE), seen))
        seen += AT_ONCE * setup.second
        if seconds in marks.seconds:
            behind[seconds] = state, seen
    took: dict[int, list[float]] = {seconds: [] for seconds in behind}
    for _ in range(ROUNDS):  # in turn, so that other work on the machine lengthens all alike
        for seconds, (held, offset) in behind.items():
            step = partial(encoder.step, held, _at(second, offset))
            took[seconds].append(cpu_seconds(step))
    return [
        _append(seconds, took[seconds], *encoder.step(held, _at(second, offset)))
        for seconds, (held, offset) in behind.items()
    ]


def _append(seconds: int, took: Sequence[float], state: State, memory: Memory) -> Figures:
    return {
        "history_seconds": seconds,
        "cpu_seconds": statistics.median(took),
        "state_bytes": sum(x.nbytes for x in state.values()),
        "new_tokens": memory.length,
        "new_bytes": sum(part.tokens.nbytes for part in memory.parts),
    }


def _chunk(setup: EncoderSetup, seconds: int) -> History:
    """Return so many seconds of random latents that follow others, whole blocks of them."""
    device, dtype, time = torch.device("cpu"), torch.float32, seconds * setup.second
    size = attrs.evolve(setup.size(1.0), time=time)
    low = attrs.evolve(setup.rate.lr_size(size), time=time // setup.rate.time)
    lr = {setup.rate: setup.random(low, device, dtype)}
    return History(latents=setup.random(size, device, dtype), lr=lr)


def _at(chunk: History, offset: int) -> History:
    return attrs.evolve(chunk, offset=offset)


def bookkeeping(marks: Marks) -> list[Figures]:
    """Return what a store of several sizes takes that holds all its clips already, for a clip."""
    experiment = tinier(TINY_WAN_2X2X2)
    with tempfile.TemporaryDirectory() as folder:
        return [_cached_again(experiment, Path(folder), clips) for clips in marks.stores]


def _cached_again(experiment: Experiment, root: Path, clips: int) -> Figures:
    videos, out = root / f"videos-{clips}", root / f"store-{clips}"
    (videos / CLIP).parent.mkdir(parents=True)
    write_builtin_clip(videos / CLIP, 2.0, 8, 32, 48)
    _cache(experiment, videos, out)
    _multiply(videos, out, clips)
    again = cpu_seconds(lambda: _cache(experiment, videos, out))
    opened = cpu_seconds(lambda: Store.open(out))
    record = read_index(out)[0]
    line = attrs.evolve(record, revision=record.revision + 1).line()
    index = out / "index" / INDEX
    appended = [cpu_seconds(lambda: append_json_line(index, line)) for _ in range(APPENDED)]
    return {
        "clips": clips,
        "resume_cpu_seconds_a_clip": again / clips,
        "open_cpu_seconds_a_clip": opened / clips,
        "index_one_more_cpu_seconds": statistics.median(appended),
    }


def _cache(experiment: Experiment, videos: Path, out: Path) -> None:
    needs = all_needs(experiment)
    result = cache(
        experiment,
        videos,
        out,
        rates=needs.rates,
        pixels=needs.pixels,
        device=torch.device("cpu"),
        progress=lambda done, total, note: None,
    )
    if result.count("bad"):
        raise UserError(f"{result.count('bad')} of the clips that were made cannot be cached")


def _multiply(videos: Path, out: Path, clips: int) -> None:
    """Make `clips` videos of the one that is cached, and their clips: links to the same files."""
    for number in range(1, clips):
        (videos / f"{number:06d}").mkdir()
        os.link(videos / CLIP, videos / f"{number:06d}" / CLIP.name)
    index = out / "index" / INDEX
    lines, sources = list(read_json_lines(index)), find_sources(videos)
    own = next(source for source in sources if source.path == videos / CLIP)
    with index.open("a", encoding="utf-8") as file:
        for source in sources:
            for line in lines if source is not own else ():
                clip = source.id + line["id"].removeprefix(own.id)
                os.link(clip_path(out, line["id"]), clip_path(out, clip))
                file.write(json.dumps({**line, "id": clip, "source": source.name}) + "\n")


def plans(marks: Marks) -> list[Figures]:
    """Return the seconds to plan a training step over stores of several sizes."""
    return [_planned(TINY_WAN_2X2X2, clips) for clips in marks.plans]


def _planned(experiment: Experiment, clips: int) -> Figures:
    geometry = experiment.backbone.geometry
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 200, (clips,), generator=random).tolist()
    records = [_record(number, latents) for number, latents in enumerate(lengths)]
    store = Store(Path("none"), {"fps": geometry.fps, "stride": geometry.vae_stride.time}, records)
    needs = compressor_needs(experiment)
    sampler = WindowSampler.of(store, geometry, experiment.train, needs)
    took = [cpu_seconds(partial(sampler.plan, step)) for step in range(PLANS)]
    return {
        "clips": clips,
        "batch": experiment.train.batch,
        "cpu_seconds": statistics.median(took),
        "greatest_cpu_seconds": max(took),
        "goal": GOAL_PLAN,
    }


def _record(number: int, latents: int) -> Record:
    return Record(
        id=f"clip-{number}",
        source=f"clip-{number}.mp4",
        fingerprint="",
        latents=latents,
        height=16,
        width=28,
        frames=1 + 4 * (latents - 1),
        fps=16.0,
        captions=(),
        placement="",
    )


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    began = time.process_time()
    run()
    return time.process_time() - began


def picture(path: Path, found: Figures) -> None:
    """Draw the three figures side by side, each against its size, as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows, stores, steps = found["appends"], found["bookkeeping"], found["plans"]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "scale", "font.size": 9}):
        figure = Figure(figsize=(9.5, 2.9), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        hours = [row["history_seconds"] / 60 for row in rows]
        left.plot(hours, [1e3 * row["cpu_seconds"] for row in rows], "o-", label="CPU ms")
        kept = [row["state_bytes"] / 2**20 for row in rows]
        left.plot(hours, kept, "s-", label="state, MiB")
        _axes(left, "one second more", "minutes of history")
        clips = [row["clips"] for row in stores]
        for key, label in (("resume", "resume, CPU ms a clip"), ("open", "open, CPU ms a clip")):
            took = [1e3 * row[f"{key}_cpu_seconds_a_clip"] for row in stores]
            middle.plot(clips, took, "o-", label=label)
        one = [1e3 * row["index_one_more_cpu_seconds"] for row in stores]
        middle.plot(clips, one, "s-", label="index one more, CPU ms")
        _axes(middle, "a store that is cached again", "clips")
        took = [1e3 * row["cpu_seconds"] for row in steps]
        right.plot([row["clips"] for row in steps], took, "o-", label="median")
        right.axhline(1e3 * GOAL_PLAN, color="0.5", linestyle="--", label="goal")
        _axes(right, "the plan of a step, CPU ms", "clips")
        with whole_file(path) as part:
            figure.savefig(part, format="svg", metadata={"Date": None})


def _axes(axes: Any, title: str, under: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(f"{under} (logarithmic)")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def measure_scale(marks: Marks) -> Figures:
    """Return all figures, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            "at": commit(),
            "machine": machine_facts(),
            "encoder": f"{ENCODER}, frames of {HEIGHT}×{WIDTH}",
            "appends": appends(marks),
            "bookkeeping": bookkeeping(marks),
            "plans": plans(marks),
        }
    finally:
        torch.set_num_threads(before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the JSON and the picture, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--tiny", action="store_true", help="small sizes, in seconds")
    args = parser.parse_args(arguments)
    try:
        check_out_file(args.out)
        found = measure_scale(TINY if args.tiny else Marks())
        write_json(args.out, found)
        picture(args.out.with_suffix(".svg"), found)
    except Exception as error:  # a plugin may raise anything
        return exit_code(error, "scale")
    print("\n".join(lines(found)))
    return 0


def lines(found: Figures) -> Iterator[str]:
    """Yield the figures as lines to read."""
    for row in found["appends"]:
        yield (
            f"one second behind {row['history_seconds']:,} s: {1e3 * row['cpu_seconds']:.1f} ms, "
            f"state {row['state_bytes'] / 2**20:.2f} MiB, {row['new_tokens']} tokens"
        )
    for row in found["bookkeeping"]:
        yield (
            f"{row['clips']:,} clips: resumed in {1e3 * row['resume_cpu_seconds_a_clip']:.2f} ms a "
            f"clip, opened in {1e3 * row['open_cpu_seconds_a_clip']:.3f}, one more indexed in "
            f"{1e3 * row['index_one_more_cpu_seconds']:.2f}"
        )
    for row in found["plans"]:
        yield f"a step planned over {row['clips']:,} clips: {1e3 * row['cpu_seconds']:.2f} ms"


if __name__ == "__main__":
    sys.exit(main())
