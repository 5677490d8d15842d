"""What a video costs in `cache`, `retrieve` and `measure`, beside the floor of the same machine.

The floor of a stage is what cannot be left out: the video decoded by ffmpeg's own library and
nothing done to its frames, and every product, convolution and attention of the stage at the rate of
one large product. Both are measured in the run that measures the stage, right before it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import av
import torch
from attrs import frozen

from .cache.cache import cache
from .data.store import Store
from .experiment import Experiment
from .interfaces.codec import Codec
from .interfaces.spec import CodecSpec
from .measure.measure import measure
from .measure.prepare import MeasureSetup
from .model import Model, all_needs, learned_retriever
from .registry import build
from .retrieve import Captions, encode_video_file, frames_from_memory
from .tools.device import pick_device
from .tools.timing import count_flop, device_limits
from .video.builtin_clip import write_builtin_clip

SECONDS, FPS, HEIGHT, WIDTH = 5.0, 24.0, 360, 640  # of the clip
MEASURED = 1.5  # seconds of the clip that `measure` takes
ROUNDS = 2
ASKED = (0.5, 3.5)  # seconds at which `retrieve` asks for a frame

Figures = dict[str, Any]


def time_stages(model: Model) -> dict[str, Figures]:
    """Return seconds, floor and their ratio of `cache`, `retrieve` and `measure` on one clip.

    `measure` runs on its first 1.5 s, with the retriever that reads memory alone.

    Args:
        model: of an experiment whose codec is on this machine, else stages are `skipped`.
    """
    codec: Codec[CodecSpec] = build(model.experiment.backbone.codec)
    if not codec.available_offline:
        reason = "the codec's weights are not on this machine, and none are downloaded for a time"
        return {name: {"skipped": reason} for name in ("cache", "retrieve", "measure")}
    with tempfile.TemporaryDirectory() as folder:
        return dict(_stages(model, codec.to(pick_device()).eval(), Path(folder)))


def _stages(model: Model, codec: Codec[CodecSpec], root: Path) -> Iterator[tuple[str, Figures]]:
    clip, runs = root / "videos" / "clip.mp4", iter(range(1_000_000))
    clip.parent.mkdir()
    write_builtin_clip(clip, SECONDS, FPS, HEIGHT, WIDTH)
    experiment = _short(model.experiment)
    shorter = attrs.evolve(model, experiment=experiment)

    def cached() -> Path:
        out = root / f"store-{next(runs)}"
        needs = all_needs(experiment)
        cache(experiment, clip.parent, out, rates=needs.rates, pixels=True, device=pick_device())
        return out

    def retrieved() -> None:
        geometry, device = experiment.backbone.geometry, pick_device()
        frames = [int(second * geometry.fps) for second in ASKED]
        captions = Captions.of(experiment, clip, frames, device)
        encoded = encode_video_file(experiment, codec, clip)
        retriever = learned_retriever(experiment)
        frames_from_memory(model, codec, encoded, frames, captions, retriever, seed=0)

    def measured() -> None:
        measure(MeasureSetup.build(shorter, store))

    yield "cache", beside_floor(cached, clip)
    store = Store.open(cached())
    yield "retrieve", beside_floor(retrieved, clip)
    yield "measure", beside_floor(measured, None)


def _short(experiment: Experiment) -> Experiment:
    """Return the experiment with clips as short as the one that is made here."""
    spec, quality = experiment.cache, experiment.measure
    return attrs.evolve(
        experiment,
        cache=attrs.evolve(spec, min_seconds=1e-6, cuts=False),
        measure=attrs.evolve(quality, seconds=min(quality.seconds, MEASURED)),
        retrievers=(learned_retriever(experiment),),
    )


@frozen(kw_only=True)
class StageRound:
    """One timed run of a stage.

    Attributes:
        seconds: that it took.
        flop: of its products, convolutions and attention.
        floor: the least seconds it could take.
        decode: seconds of the floor in which a video is decoded.
    """

    seconds: float
    flop: float
    floor: float
    decode: float


def joined(rounds: Sequence[StageRound]) -> Figures:
    """Return the figures of a stage: the middle of its rounds, and each of them."""
    rows = [
        {
            "seconds": one.seconds,
            "floor_seconds": one.floor,
            "decode_seconds": one.decode,
            "gflop": one.flop / 1e9,
            "over_floor": one.seconds / one.floor,
        }
        for one in rounds
    ]
    return {**{key: statistics.median(row[key] for row in rows) for key in rows[0]}, "rounds": rows}


def beside_floor(run: Callable[[], object], video: Path | None) -> Figures:
    """Return the seconds of a stage and the floor of each of its runs.

    Args:
        run: the stage.
        video: that it decodes; None: none.
    """
    flop = count_flop(run)  # warms up, too
    return joined([_round(run, video, flop) for _ in range(ROUNDS)])


def _round(run: Callable[[], object], video: Path | None, flop: int) -> StageRound:
    decode = 0.0 if video is None else seconds_of(lambda: decode_bare(video))
    floor = decode + flop / matmul_rate()
    return StageRound(seconds=seconds_of(run), flop=flop, floor=floor, decode=decode)


def matmul_rate() -> float:
    """Return FLOP/s of a large fp32 product on this device, now."""
    device = pick_device()
    side = 8192 if device.type == "cuda" else 1536
    limits = device_limits(device, torch.float32, side=side, floats=2**20, repeats=3)
    return float(limits["flop_per_second"])


def decode_bare(video: Path) -> int:
    """Decode a video with ffmpeg's library and drop the frames; return how many there were."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        return sum(1 for _ in container.decode(stream))


def seconds_of(run: Callable[[], object]) -> float:
    """Return the wall time of a call, device work included."""
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
