"""What `longtake retrieve` does: frames at given times of a video file, out of its memory alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

from .cache.encode import Encoded, encode_file
from .data.sources import caption_of
from .data.windows import Batch
from .errors import UserError
from .experiment import Experiment
from .interfaces.codec import Codec, frame_to_latent, frames_of, to_bytes
from .interfaces.retriever import Scene
from .interfaces.spec import CodecSpec, RetrieverSpec
from .interfaces.text_encoder import embed_all, unread_of
from .model import (
    Model,
    all_needs,
    build_retriever,
    frames_by_latent,
    learned_retriever,
    make_scene,
)
from .registry import build
from .tools.device import pick_device
from .tools.files import check_out_folder
from .tools.pictures import save_png, side_by_side
from .train.checkpoint import load_model, older_offered, read_run
from .values.text import Text


@frozen(kw_only=True)
class Retrieval:
    """What was written, and how short the memory was.

    Attributes:
        files: the strip, then for each time the retrieved frame and the original.
        tokens: context length of the memory.
        uncompressed_tokens: tokens that the DiT would need for the video as it is.
        seconds: length of the video.
        cut_captions: how many of its captions the text encoder does not read to their ends.
    """

    files: tuple[Path, ...]
    tokens: int
    uncompressed_tokens: int
    seconds: float
    cut_captions: int


def retrieve(
    run: Path, video: Path, times: Sequence[float], out: Path, *, steps: int | None, seed: int
) -> Retrieval:
    """Write the frames at some times of a video as a run's memory gives them back, as PNG files.

    Args:
        run: folder of a run or of shipped weights.
        video: a video file; captions beside it are read.
        times: seconds from the start of the video.
        out: folder of the images; the originals and a strip of both are written, too.
        steps: sampling steps; None: those of the run's retriever.
        seed: of the noise.

    Raises:
        UserError: a time is behind the end, the run's retriever takes no such `steps`, or `out`
            cannot be written.
    """
    check_out_folder(out)
    experiment, folder = read_run(run)
    retriever = _with_steps(learned_retriever(experiment), steps)
    geometry, device = experiment.backbone.geometry, pick_device()
    frames = [int(round(time * geometry.fps, 6)) for time in times]
    # One after the other: prompts, video, model. On real weights each takes most of a GPU.
    captions = Captions.of(experiment, video, frames, device)
    codec: Codec[CodecSpec] = build(experiment.backbone.codec).to(device)
    encoded = encode_video_file(experiment, codec, video)
    seconds = encoded.frames / encoded.fps
    late = [time for time in times if time >= seconds]
    if late:
        raise UserError(f"--at {late[0]:g}: {video.name} has {seconds:.2f} s (0 ≤ time < that)")
    with older_offered(folder):
        model = load_model(folder, experiment).eval().to(device)
    retrieved, scene = frames_from_memory(
        model, codec, encoded, frames, captions, retriever, seed=seed
    )
    return Retrieval(
        files=_save(out, times, frames, encoded, retrieved),
        tokens=scene.memory.length,
        uncompressed_tokens=model.backbone.geometry.tokens(scene.size),
        seconds=seconds,
        cut_captions=captions.cut,
    )


@frozen(eq=False, kw_only=True)
class Captions:
    """The captions that frames are retrieved with, embedded.

    Attributes:
        latents: the latents that hold the frames, in order, by their caption.
        texts: the embedding of each caption, and of "".
        cut: how many of them the text encoder does not read to their ends.
    """

    latents: Mapping[str, list[int]]
    texts: Mapping[str, Text]
    cut: int = 0

    @classmethod
    def of(
        cls, experiment: Experiment, video: Path, frames: Sequence[int], device: torch.device
    ) -> Captions:
        """Embed the captions that cover the latents of these frames; then free the encoder.

        Raises:
            UserError: the captions cannot be read, or the text encoder has no weights.
        """
        geometry = experiment.backbone.geometry
        stride = geometry.vae_stride.time
        latents: dict[str, list[int]] = {}
        for latent in sorted({frame_to_latent(frame, stride) for frame in frames}):
            span = frames_of(latent, stride)
            prompt = caption_of(video, span.start / geometry.fps, span.stop / geometry.fps)
            latents.setdefault(prompt, []).append(latent)
        prompts = sorted({"", *latents})
        encoder = build(experiment.backbone.text_encoder).to(device)
        cut = len(unread_of(encoder, prompts))
        text = embed_all(encoder, prompts)
        texts = {
            prompt: text.select([row]).to(device, torch.float32)
            for row, prompt in enumerate(prompts)
        }
        return cls(latents=latents, texts=texts, cut=cut)


def encode_video_file(experiment: Experiment, codec: Codec[CodecSpec], video: Path) -> Encoded:
    """Return a video encoded as the experiment would cache it, with its frames."""
    with torch.no_grad():
        return encode_file(
            video,
            codec,
            experiment.backbone.geometry,
            attrs.evolve(experiment.cache, min_seconds=1e-6),
            fps=experiment.backbone.geometry.fps,
            rates=all_needs(experiment).rates,
            keep_pixels=True,
        )


@torch.no_grad()
def frames_from_memory(
    model: Model,
    codec: Codec[CodecSpec],
    encoded: Encoded,
    frames: Sequence[int],
    captions: Captions,
    spec: RetrieverSpec,
    *,
    seed: int,
) -> tuple[list[Tensor], Scene]:
    """Return the frames `[3, P, Q]` uint8 as a retriever gives them, and the scene it was given."""
    stride, no_text = codec.stride.time, captions.texts[""]
    history = encoded.history().to(no_text.embeddings.device)
    batch = Batch(history=history, text=no_text, names=("video",))
    scene = make_scene(model, codec, batch, no_text)
    retriever = build_retriever(spec)
    generator = torch.Generator().manual_seed(seed)
    by_latent: dict[int, Tensor] = {}
    for prompt, latents in captions.latents.items():
        omega = torch.tensor([latents])
        text = captions.texts[prompt]
        result = retriever.retrieve(attrs.evolve(scene, text=text), omega, generator)
        pixels = frames_by_latent(codec, scene.history.latents, omega, result)
        by_latent |= zip(latents, pixels, strict=True)
    return [_frame(by_latent[frame_to_latent(f, stride)], f, stride) for f in frames], scene


def _frame(pixels: Tensor, frame: int, stride: int) -> Tensor:
    """Return a frame of the video out of those of its latent, `[1, 3, F, P, Q]`, as uint8."""
    index = 0 if frame == 0 else (frame - 1) % stride
    return to_bytes(pixels[0, :, index]).cpu()


def _with_steps(spec: RetrieverSpec, steps: int | None) -> RetrieverSpec:
    if steps is None:
        return spec
    if "steps" not in attrs.fields_dict(type(spec)):
        raise UserError("--steps: the retriever of this experiment has no steps")
    if steps < 1:
        raise UserError(f"--steps {steps}: 1 or more")
    changes: dict[str, Any] = {"steps": steps}
    return attrs.evolve(spec, **changes)


def _save(
    out: Path,
    times: Sequence[float],
    frames: Sequence[int],
    encoded: Encoded,
    retrieved: Sequence[Tensor],
) -> tuple[Path, ...]:
    assert encoded.pixels is not None  # they were asked for
    originals = [encoded.pixels[0, :, frame] for frame in frames]
    files = []
    for time, original, image in zip(times, originals, retrieved, strict=True):
        files.append(save_png(out / f"{time:08.3f}s-retrieved.png", image))
        files.append(save_png(out / f"{time:08.3f}s-original.png", original))
    strip = torch.cat([side_by_side(originals), side_by_side(retrieved)], dim=1)
    return (save_png(out / "strip.png", strip), *files)
