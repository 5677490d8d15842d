"""Small takes: a run of a few thousand parameters, a second of video a moment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from attrs import evolve

from longtake.core.experiment import Experiment, GenerateSpec
from longtake.core.sample.spec import MemoryBudget, Sampler
from longtake.core.take.events import Event
from longtake.core.take.storyboard import Section
from longtake.core.take.take import Take
from longtake.core.video.write import write_video

from ..small import moving, small
from ..test_export_verb import make_run

SEED = 3
TWO = (Section(prompt="a dog", seconds=2.0), Section(prompt="a cat", seconds=1.5))


def experiment(**changes: Any) -> Experiment:
    """Segments of at most 5 latents, two steps, all of the past remembered."""
    spec = GenerateSpec(
        sampler=Sampler(scheduler="euler", steps=2, guidance=2.0),
        segment_seconds=2.2,
        budget=MemoryBudget(max_history_seconds=0.0),
    )
    return evolve(small(trains="lora"), generate=spec, **changes)


def runs(folder: Path, spec: Experiment | None = None) -> Path:
    """A run that anything but copies its past."""
    place = folder / "run"
    make_run(place, spec or experiment())
    return place


def begun(out: Path, run: Path, **options: Any) -> Take:
    return Take.create(out, run=run, **({"seed": SEED, "device": "cpu"} | options))


def opened(out: Path, **options: Any) -> Take:
    return Take.open(out, device="cpu", **options)


def kinds(events: Iterator[Event]) -> list[str]:
    """What happened, without steps, previews and notes."""
    return [e.kind for e in events if e.kind not in ("step", "preview", "note")]


def done(events: Iterator[Event]) -> dict[str, Any]:
    """The last event of all."""
    return list(events)[-1].to_json()


def same(one: Take, other: Take) -> None:
    """Two takes are equal, bit for bit: order, latents, memory, frames of the mp4."""
    assert [e.id for e in one.order.entries] == [e.id for e in other.order.entries]
    assert torch.equal(one.latents(), other.latents())
    a, b = one.memory().joined(), other.memory().joined()
    assert a is not None and b is not None
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.positions, b.positions)
    assert (one.root / "take.mp4").read_bytes() == (other.root / "take.mp4").read_bytes()


def clip(path: Path, seconds: float = 4.1, seed: int = 5, size: tuple[int, int] = (40, 72)) -> Path:
    write_video(path, moving(seed, seconds, 8, size), 8)
    return path


def copy(take: Take, to: Path) -> Take:
    shutil.copytree(take.root, to)
    return opened(to)


def with_sound(path: Path, codec: str = "aac", seconds: float = 4.1) -> Path:
    """The clip of `clip` with a tone that begins silent: its first half second is quiet."""
    pictures = clip(path.with_name("silent.mp4"), seconds)
    rate = 16000
    with av.open(str(pictures)) as source, av.open(str(path), "w") as container:
        stream = source.streams.video[0]
        out = container.add_stream_from_template(stream)
        sound = container.add_stream(codec, rate=rate, layout="mono")
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = out
                container.mux(packet)
        times = np.arange(int(seconds * rate)) / rate
        wave = np.where(times < 0.5, 0.0, 0.5 * np.sin(2 * np.pi * 440 * times))
        for begin in range(0, len(wave) - 1023, 1024):
            samples = (wave[None, begin : begin + 1024] * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, begin
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    pictures.unlink()
    return path


def heard(path: Path) -> tuple[float, float] | None:
    """When the tone begins and ends in a video's sound, seconds; None: it has no sound."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        loud = []
        for frame in container.decode(audio=0):
            level = np.abs(frame.to_ndarray().astype(np.float64)).max()
            if level > (0.1 if frame.format.name.startswith("flt") else 3000):
                loud.append(float(frame.time or 0.0))
    return loud[0], loud[-1]
