"""`longtake retrieve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ..cache.encode import Encoded, encode_file
from ..data.sources import caption_of
from ..data.windows import Batch
from ..errors import UserError
from ..experiment import Experiment
from ..interfaces.codec import Codec, frame_to_latent, frames_of, to_bytes
from ..interfaces.spec import CodecSpec, RetrieverSpec
from ..interfaces.text_encoder import embed_all
from ..model import (
    Model,
    all_needs,
    build_retriever,
    frames_by_latent,
    learned_retriever,
    make_scene,
)
from ..registry import build
from ..tools.device import pick_device
from ..tools.pictures import save_png, side_by_side
from ..train.checkpoint import load_model, read_run
from ..values.grid import Rate
from ..values.text import Text
from .options import emit, find_run

# ⟦core/verbs/prompts.py⟧ The captions that frames of a video file are retrieved with.


@frozen(eq=False, kw_only=True)
class Captions:
    """The prompts that the asked frames are retrieved with, embedded.

    Attributes:
        latents: the asked latents in order, by their prompt.
        texts: by prompt, "" among them.
    """

    latents: Mapping[str, list[int]]
    texts: Mapping[str, Text]

    @classmethod
    def of(
        cls, experiment: Experiment, video: Path, frames: Sequence[int], device: torch.device
    ) -> Captions:
        """Embed the captions that cover the latents of these frames; then free the encoder.

        Raises:
            UserError: the captions cannot be read, or the text encoder has no weights.
        """
        geometry, stride = (
            experiment.backbone.geometry,
            experiment.backbone.geometry.vae_stride.time,
        )
        latents: dict[str, list[int]] = {}
        for latent in sorted({frame_to_latent(frame, stride) for frame in frames}):
            span = frames_of(latent, stride)
            prompt = caption_of(video, span.start / geometry.fps, span.stop / geometry.fps)
            latents.setdefault(prompt, []).append(latent)
        prompts = sorted({"", *latents})
        text = embed_all(build(experiment.backbone.text_encoder).to(device), prompts)
        texts = {
            prompt: text.select([row]).to(device, torch.float32)
            for row, prompt in enumerate(prompts)
        }
        return cls(latents=latents, texts=texts)


def retrieve(
    run: str, video: Path, at: str, out: Path, *, steps: int | None, seed: int, as_json: bool
) -> None:
    """Give frames at given times out of a video's memory."""
    times = parse_times(at)
    experiment, folder = read_run(find_run(run))
    retriever = _retriever(experiment, steps)
    geometry, device = experiment.backbone.geometry, pick_device()
    frames = [int(round(t * geometry.fps, 6)) for t in times]
    # One after the other: prompts, video, model. On real weights each takes most of a GPU.
    captions = Captions.of(experiment, video, frames, device)
    codec: Codec[CodecSpec] = build(experiment.backbone.codec).to(device)
    encoded = encode_video_file(experiment, codec, video)
    seconds = encoded.frames / encoded.fps
    late = [t for t in times if t >= seconds]
    if late:
        raise UserError(f"--at {late[0]:g}: {video.name} has {seconds:.2f} s (0 ≤ time < that)")
    model = load_model(folder, experiment).eval().to(device)
    asked = Asked(frames=frames, captions=captions, retriever=retriever, seed=seed)
    shown, tokens, before = frames_from_memory(model, codec, encoded, asked)
    files = _save(out, times, frames, encoded, shown)
    summary = {
        "files": [str(path) for path in files],
        "context_tokens": tokens,
        "uncompressed_tokens": before,
        "seconds": seconds,
    }
    lines = [
        f"{seconds:.1f} s of video: {before:,} tokens compressed to {tokens:,}",
        *map(str, files),
    ]
    emit(summary, lines, as_json=as_json)


@frozen(eq=False, kw_only=True)
class Asked:
    """Video frames to give back, their captions, and by which retriever and seed."""

    frames: list[int]
    captions: Captions
    retriever: RetrieverSpec
    seed: int


def parse_times(at: str) -> list[float]:
    """Return the seconds in a list such as `3.2,7.5`, each millisecond once, in their order.

    Raises:
        UserError: one of them is no number or below 0.
    """
    times = []
    for text in at.split(","):
        try:
            times.append(float(text))
        except ValueError:
            raise UserError(f"--at {text.strip()!r}: seconds are wanted, such as 3.2,7.5") from None
        if not 0 <= times[-1] < float("inf"):
            raise UserError(f"--at {text.strip()}: a time in the video is wanted, 0 or more")
    by_name: dict[str, float] = {}
    for time in times:
        by_name.setdefault(f"{time:.3f}", time)
    return list(by_name.values())


def encode_video_file(experiment: Experiment, codec: Codec[CodecSpec], video: Path) -> Encoded:
    """Return a video as the experiment would cache it, frames kept."""
    rates: frozenset[Rate] = all_needs(experiment).rates
    with torch.no_grad():
        return encode_file(
            video,
            codec,
            experiment.backbone.geometry,
            attrs.evolve(experiment.cache, min_seconds=1e-6),
            fps=experiment.backbone.geometry.fps,
            rates=rates,
            keep_pixels=True,
        )


@torch.no_grad()
def frames_from_memory(
    model: Model, codec: Codec[CodecSpec], encoded: Encoded, asked: Asked
) -> tuple[list[Tensor], int, int]:
    """Return the frames `[3, P, Q]` uint8 out of memory, its tokens, and the tokens uncompressed."""
    stride, texts = codec.stride.time, asked.captions.texts
    history = encoded.history().to(texts[""].embeddings.device)
    batch = Batch(history=history, text=texts[""], names=("video",))
    scene = make_scene(model, codec, batch, texts[""])
    retriever = build_retriever(asked.retriever)
    generator = torch.Generator().manual_seed(asked.seed)
    found: dict[int, Tensor] = {}
    for prompt, latents in asked.captions.latents.items():
        omega = torch.tensor([latents])
        result = retriever(attrs.evolve(scene, text=texts[prompt]), omega, generator)
        pixels = frames_by_latent(codec, scene.history.latents, omega, result)
        found |= zip(latents, pixels, strict=True)
    shown = [_frame(found[frame_to_latent(f, stride)], f, stride) for f in asked.frames]
    patch, size = model.backbone.geometry.patch, scene.size
    before = size.time * -(-size.height // patch.height) * -(-size.width // patch.width)
    return shown, scene.memory.length, before


def _frame(pixels: Tensor, frame: int, stride: int) -> Tensor:
    index = 0 if frame == 0 else (frame - 1) % stride
    return to_bytes(pixels[0, :, index]).cpu()


def _retriever(experiment: Experiment, steps: int | None) -> RetrieverSpec:
    spec = learned_retriever(experiment)
    if steps is None:
        return spec
    if "steps" not in attrs.fields_dict(type(spec)):
        raise UserError("--steps: the retriever of this experiment has no steps")
    if steps < 1:
        raise UserError(f"--steps {steps}: 1 or more")
    changes: dict[str, Any] = {"steps": steps}
    return attrs.evolve(spec, **changes)


def _save(
    out: Path, times: list[float], frames: list[int], encoded: Encoded, shown: list[Tensor]
) -> list[Path]:
    assert encoded.pixels is not None
    originals = [encoded.pixels[0, :, frame] for frame in frames]
    files = []
    for time, original, retrieved in zip(times, originals, shown, strict=True):
        files.append(save_png(out / f"{time:08.3f}s-retrieved.png", retrieved))
        files.append(save_png(out / f"{time:08.3f}s-original.png", original))
    strip = torch.cat([side_by_side(originals), side_by_side(shown)], dim=1)
    return [save_png(out / "strip.png", strip), *files]
