"""Train the learned codec of the tiny backbones on real clips, and print how well it does.

    python -m longtake.experiments.fit_autoencoder --videos DIR --check DIR --out runs/tiny-ae

The linear maps begin as the principal components of blocks of 4×8×8 pixels; then encoder and
decoder train together on crops of 64×64 pixels and four frames, for the mean squared error of
pixels, and at last for the mean of each crop's PSNR, which smooth crops gain from. Latents see a
little noise on the way, so that a model's small errors stay small in pixels. At the end the average
of the weights (EMA), the mean and standard deviation of latents and the reach of each channel go to
`codec.safetensors`, with `training.json` beside it. The same command goes on where it was stopped;
`--check` reads other clips and prints the PSNR there.

`--decoder-of runs/tiny-ae --layers 6 --decoder-width 192` trains another decoder for the encoder of
those weights, which stays to the bit: what was cached and trained with its latents goes on.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from einops import rearrange, repeat
from torch import Tensor

from ..backbones.codecs.autoencoder import FILE, TinyAutoencoderCodec, find_weights, to_planes
from ..backbones.codecs.blocks import BLOCK
from ..backbones.codecs.specs import TinyAutoencoder
from ..core.data.sources import find_sources
from ..core.errors import LongtakeError, UserError
from ..core.interfaces.codec import from_bytes
from ..core.plugin_errors import exit_code
from ..core.tools.files import (
    append_json_line,
    check_out_folder,
    claimed_folder,
    open_tensors,
    read_json,
    read_json_lines,
    read_object,
    whole_file,
    whole_folder,
    write_json,
    write_tensors,
)
from ..core.tools.progress import Report, progress_bar
from ..core.train.checkpoint import (
    checkpoints,
    load_average,
    load_optimizer,
    load_raw,
    prune,
    read_state,
    write_state,
)
from ..core.train.ema import EMA, trainable_parameters
from ..core.train.trainer import stop_on_signals
from ..core.values.draws import step_generator
from ..core.video.decode import probe
from ..core.video.placement import place
from ..core.video.read import read_frames
from .common import codec_psnr

FPS = 8.0
AREAS = (96 * 160, 128 * 224, 192 * 320)  # pixels of a frame that clips are read at
LONGEST = 1 + BLOCK.time * 400  # frames of a clip that are read
CROP = 64  # pixels of a side
CHECKED = AREAS[1]
COMPONENTS = 1024  # crops that the linear maps are fitted to
SCALE = 0.008  # of the logarithm, so that its gradient is about that of the error itself
FLOOR = 1e-4  # of an error: less is seen by nobody
NORMALISED = 1024  # crops that mean, standard deviation and reach are taken from
SPEC = TinyAutoencoder(weights=None)
FACTS = "training.json"
MINUTES = "minutes.json"  # of training so far, of a run that was stopped and went on


@frozen(kw_only=True)
class Fit:
    """How the codec trains.

    Attributes:
        steps: of training for the error of pixels.
        polish: steps behind those, for the mean of each crop's PSNR, from a third of the rate to 0.
        batch: crops of a step.
        rate: the highest learning rate; it rises over `warmup` steps and falls to 0 over the last
            `fall` of all.
        noise: standard deviation that is added to latents of about unit variance.
        still: share of crops that repeat one frame four times, as latent 0 does.
        seed: of all that is drawn.
        encoder: weights whose encoder stays, while a decoder is trained; None: both train.
        layers, decoder_width: of the decoder; None: as `TinyAutoencoder` has them.
    """

    steps: int
    polish: int
    batch: int = 32
    rate: float = 3e-3
    warmup: int = 100
    fall: float = 0.6
    noise: float = 0.02
    still: float = 0.05
    seed: int = 0
    encoder: str | None = None
    layers: int | None = None
    decoder_width: int | None = None

    @property
    def spec(self) -> TinyAutoencoder:
        """The codec that trains, with random weights."""
        sizes: dict[str, Any] = {"layers": self.layers, "decoder_width": self.decoder_width}
        return evolve(SPEC, **{name: size for name, size in sizes.items() if size is not None})

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step >= self.steps:
            return self.rate / 3 * (self.steps + self.polish - step) / self.polish
        falling = (self.steps - step) / (self.steps * self.fall)
        return self.rate * min(1.0, (step + 1) / self.warmup, falling)


@frozen(eq=False)
class Clips:
    """Clips in memory, uint8 `[F, P, Q, 3]`, each at one or more sizes, and their names."""

    frames: tuple[Tensor, ...]
    names: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path, areas: Iterable[int], report: Report | None = None) -> Clips:
        """Read the videos of a folder.

        Raises:
            UserError: the folder holds no videos, or one of them cannot be read.
        """
        sources = find_sources(folder)
        frames, names = [], []
        for done, source in enumerate(sources):
            if report:
                report(done, len(sources), source.name)
            largest = read_clip(source.path, max(areas))
            frames += [largest, *(smaller(largest, a) for a in areas if a != max(areas))]
            names.append(source.name)
        return cls(tuple(frames), tuple(names))

    def crops(self, count: int, generator: torch.Generator, still: float) -> Tensor:
        """Return random crops as blocks `[count, 768, 8, 8]`; long clips are drawn more often."""
        lengths = torch.tensor([float(len(clip)) for clip in self.frames])
        chosen = torch.multinomial(lengths, count, replacement=True, generator=generator)
        crops = torch.stack([_crop(self.frames[int(i)], generator, still) for i in chosen])
        return to_planes(rearrange(from_bytes(crops), "b t h w c -> b c t h w"))


def _crop(clip: Tensor, generator: torch.Generator, still: float) -> Tensor:
    """Return four frames of a crop `[4, 64, 64, 3]`, mirrored or reversed by chance."""

    def draw(highest: int) -> int:
        return int(torch.randint(highest + 1, (), generator=generator))

    t, y, x = (draw(have - want) for have, want in zip(clip.shape, (4, CROP, CROP), strict=False))
    crop = clip[t : t + BLOCK.time, y : y + CROP, x : x + CROP]
    if draw(1):
        crop = crop.flip(2)
    if float(torch.rand((), generator=generator)) < still:
        return repeat(crop[0], "h w c -> t h w c", t=BLOCK.time)
    return crop.flip(0) if draw(1) else crop


def read_clip(path: Path, area: int) -> Tensor:
    """Return the frames of a video at 8 frames a second, uint8 `[F, P, Q, 3]`."""
    info = probe(path)
    size = place(info.width, info.height, area, (16, 16))
    clip = read_frames(path, fps=FPS, size=size, count=LONGEST, minimum=1 + BLOCK.time)
    return torch.from_numpy(clip.frames)


def smaller(clip: Tensor, area: int) -> Tensor:
    """Return a clip `[F, P, Q, 3]` at another size, about the square root of `area` to a side."""
    at = place(clip.shape[2], clip.shape[1], area, (16, 16))
    resized = []
    for frames in clip.split(64):  # as floats a whole clip would be large
        pixels = rearrange(frames, "f h w c -> f c h w").float()
        size = (at.resized_height, at.resized_width)
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)
        resized.append(rearrange(pixels.round().clamp(0, 255).byte(), "f c h w -> f h w c"))
    rows = slice(at.crop_top, at.crop_top + at.height)
    return torch.cat(resized)[:, rows, at.crop_left : at.crop_left + at.width]


@torch.no_grad()
def begin_as_components(codec: TinyAutoencoderCodec, blocks: Tensor) -> None:
    """Begin with the best linear code of some blocks `[B, 768, H, W]`; networks add nothing yet."""
    cells = rearrange(blocks, "b d h w -> (b h w) d").double()
    mean = cells.mean(dim=0)
    variances, axes = torch.linalg.eigh((cells - mean).T @ (cells - mean) / len(cells))
    std = variances[-codec.channels :].flip(0).clamp_min(1e-12).sqrt()
    axes = axes[:, -codec.channels :].flip(1)  # [768, C], strongest first
    into, out = codec.encoder.linear, codec.decoder.linear
    assert into.bias is not None and out.bias is not None
    into.weight.copy_(rearrange((axes / std).float(), "d c -> c d 1 1"))
    into.bias.copy_((-mean @ axes / std).float())
    out.weight.copy_(rearrange((axes * std).float(), "d c -> d c 1 1"))
    out.bias.copy_(mean.float())
    for network in (codec.encoder.network, codec.decoder.network):
        for parameter in network[-1].parameters():
            parameter.zero_()


@torch.no_grad()
def begin_beside(codec: TinyAutoencoderCodec, weights: str) -> None:
    """Begin with the encoder of some weights, and their decoder's linear map.

    Raises:
        UserError: there are no such weights, or their encoder is of another size.
    """
    with open_tensors(find_weights(weights)) as file:
        kept = [name for name in file.keys() if not name.startswith("decoder.network.")]
        tensors = {name: file.get_tensor(name).float() for name in kept}
    own = codec.state_dict()
    if wrong := [name for name, x in tensors.items() if x.shape != own[name].shape]:
        raise UserError(f"{weights}: {wrong[0]} is {list(tensors[wrong[0]].shape)}, another size")
    codec.load_state_dict(tensors, strict=False)
    for parameter in codec.decoder.network[-1].parameters():
        parameter.zero_()


def loss_of(codec: TinyAutoencoderCodec, blocks: Tensor, noise: Tensor, *, polish: bool) -> Tensor:
    """Return the error of pixels, and a little for raw latents that leave zero mean, unit variance.

    Args:
        codec: in training.
        blocks: `[B, 768, H, W]`.
        noise: added to raw latents, `[B, C, H, W]`.
        polish: whether the error is the mean of the logarithm of each crop's, as PSNR counts.
    """
    raw = codec.encoder(blocks)
    error = F.mse_loss(codec.decoder(raw + noise), blocks, reduction="none").mean(dim=(1, 2, 3))
    error = SCALE * (error + FLOOR).log().mean() if polish else error.mean()
    mean, variance = raw.mean(dim=(0, 2, 3)), raw.var(dim=(0, 2, 3))
    stray: Tensor = mean.square().mean() + variance.clamp_min(1e-4).log().square().mean()
    return error + 1e-3 * stray


def train(codec: TinyAutoencoderCodec, clips: Clips, fit: Fit, run: Path, report: Report) -> bool:
    """Train from the newest checkpoint of a run on; return whether the last step was reached."""
    codec.decoder.requires_grad_(requires_grad=True)
    codec.encoder.requires_grad_(requires_grad=fit.encoder is None)
    trained = [p for p in codec.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.99), weight_decay=0.0)
    weights = trainable_parameters(codec)
    average = EMA.of(weights, decay=0.998)
    step, losses = 0, []
    if fit.encoder is not None:
        begin_beside(codec, fit.encoder)
    if saved := checkpoints(run):
        step = int(read_state(saved[-1])["step"])
        load_raw(saved[-1], weights)
        load_average(saved[-1], average)
        load_optimizer(saved[-1], optimizer)
    else:
        if fit.encoder is None:
            generator = step_generator(fit.seed, 0, 0, "components")
            begin_as_components(codec, clips.crops(COMPONENTS, generator, fit.still))
        average = EMA.of(weights, decay=0.998)
    with stop_on_signals() as stop:
        while step < fit.steps + fit.polish and not stop.requested:
            loss = train_step(codec, clips, fit, optimizer, step)
            average.update()
            step += 1
            losses.append(loss)
            report(step, fit.steps + fit.polish, f"loss {loss:.4f}")
            if step % 250 == 0 or step == fit.steps + fit.polish or stop.requested:
                line = {"step": step, "loss": round(sum(losses) / len(losses), 6)}
                append_json_line(run / "metrics.jsonl", line)
                losses.clear()
                save(run, step, loss, optimizer, average)
    with torch.no_grad():
        for name, mean in average.mean.items():
            weights[name].copy_(mean)
    codec.requires_grad_(requires_grad=False)
    return step == fit.steps + fit.polish


def train_step(
    codec: TinyAutoencoderCodec, clips: Clips, fit: Fit, optimizer: torch.optim.Optimizer, step: int
) -> float:
    """Train one step; return its loss. All that is drawn follows from the seed and the step."""
    generator = step_generator(fit.seed, step, 0, "crops")
    blocks = clips.crops(fit.batch, generator, fit.still)
    shape = (len(blocks), codec.channels, *blocks.shape[2:])
    noise = fit.noise * torch.randn(shape, generator=generator)
    loss = loss_of(codec, blocks, noise, polish=step >= fit.steps)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = fit.rate_at(step)
    optimizer.step()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise LongtakeError(f"the loss is {value} at step {step}: lower --rate")
    return value


def save(run: Path, step: int, loss: float, optimizer: torch.optim.Optimizer, average: EMA) -> None:
    """Write checkpoint-<step>, and keep it alone."""
    state = {"step": step, "live": True, "losses": [], "loss": loss, "gain": None}
    with whole_folder(run / f"checkpoint-{step}") as folder:
        write_state(folder, optimizer.state_dict(), average, state)
    prune(run, 1)


@torch.no_grad()
def normalise(codec: TinyAutoencoderCodec, blocks: Tensor, *, encoder_trained: bool = True) -> None:
    """Take mean, standard deviation and reach of each channel from blocks `[B, 768, H, W]`.

    Reach is how far a tenth of a standard deviation moves the pixels of its block, by root mean
    square, for ten times that. Mean and deviation stay where the encoder was not trained.
    """
    if encoder_trained:
        raw = codec.encoder(blocks)
        codec.mean.copy_(raw.mean(dim=(0, 2, 3)))
        codec.std.copy_(raw.std(dim=(0, 2, 3)))
    latents = codec.encode_blocks(blocks)
    shown = codec.decode_blocks(latents)
    for channel in range(codec.channels):
        moved = latents.clone()
        moved[:, channel, ::3, ::3] += 0.1  # far enough apart to tell whose pixels move
        change = (codec.decode_blocks(moved) - shown)[:, :, ::3, ::3]
        codec.reach[channel] = 10 * change.square().mean().sqrt()


def ship(codec: TinyAutoencoderCodec, out: Path, facts: dict[str, Any]) -> None:
    """Write the weights, and beside them how they were made."""
    with whole_file(out / FILE) as part:
        write_tensors(part, codec.state_dict(), {"format": 1})
    write_json(out / FACTS, facts)


def read_checked(videos: Path) -> Clips:
    """Return the clips of `--check`, at about 128×224 pixels, 8 frames a second.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    try:
        return Clips.read(videos, (CHECKED,))
    except UserError as error:
        raise UserError(str(error).replace("--videos", "--check", 1)) from None


def check(codec: TinyAutoencoderCodec, clips: Clips) -> dict[str, float]:
    """Return the PSNR of each of the clips that `read_checked` returned, dB."""
    pixels = [rearrange(from_bytes(clip), "f h w c -> 1 c f h w") for clip in clips.frames]
    return {
        name: round(codec_psnr(codec, clip), 3)
        for name, clip in zip(clips.names, pixels, strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write and check, as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=Path, help="folder of clips to train on")
    parser.add_argument("--out", type=Path, help="folder of the run and of its weights")
    parser.add_argument("--check", type=Path, help="folder of clips to measure on")
    parser.add_argument("--weights", default="tiny-ae", help="what --check measures without --out")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--polish", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--decoder-of", help="weights whose encoder stays; a decoder alone trains")
    parser.add_argument("--layers", type=int, help="3×3 convolutions of the decoder")
    parser.add_argument("--decoder-width", type=int, help="of the decoder's convolutions")
    args = parser.parse_args(arguments)
    try:
        if args.videos is not None:
            return fit_folder(args)
        if args.check is None:
            raise UserError("nothing to do: give --videos and --out, or --check")
        codec = TinyAutoencoderCodec(TinyAutoencoder(weights=args.weights))
        print_check(check(codec, read_checked(args.check)))
    except Exception as error:
        return exit_code(error, "fit_autoencoder")
    return 0


def fit_of(args: argparse.Namespace) -> Fit:
    """Return how the codec trains, as the command line says.

    Raises:
        UserError: a number is out of its range.
    """
    for option, value, least in (
        ("--steps", args.steps, 1), ("--polish", args.polish, 1), ("--layers", args.layers, 1),
        ("--decoder-width", args.decoder_width, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            raise UserError(f"{option} {value}: {least} or more")
    if not 0 < args.rate < math.inf:
        raise UserError(f"--rate {args.rate:g}: a learning rate above 0")
    return Fit(
        steps=args.steps, polish=args.polish, rate=args.rate, encoder=args.decoder_of,
        layers=args.layers, decoder_width=args.decoder_width,
    )  # fmt: skip


def fit_folder(args: argparse.Namespace) -> int:
    """Train on `--videos` in `--out`; return the exit code."""
    if args.out is None:
        raise UserError("--videos needs --out, the folder of the run")
    fit = fit_of(args)
    settings = {
        "steps": fit.steps,
        "polish": fit.polish,
        "rate": fit.rate,
        "videos": str(args.videos),
    }
    more = {"decoder_of": fit.encoder, "layers": fit.layers, "decoder_width": fit.decoder_width}
    settings |= {name: value for name, value in more.items() if value is not None}
    if (args.out / "fit.json").exists():
        before = read_json(args.out / "fit.json", "run")
        if before != settings:
            raise UserError(f"{args.out} trains with {before}, not {settings}: take another --out")
    else:
        check_out_folder(args.out)
    torch.manual_seed(fit.seed)
    codec = TinyAutoencoderCodec(fit.spec)
    if fit.encoder is not None:
        begin_beside(codec, fit.encoder)
    checked = None if args.check is None else read_checked(args.check)
    with progress_bar("reading") as report:
        clips = Clips.read(args.videos, AREAS, report)
    args.out.mkdir(parents=True, exist_ok=True)
    with claimed_folder(args.out):
        write_json(args.out / "fit.json", settings)
        trained, began = _minutes(args.out), time.monotonic()
        with progress_bar("training") as report:
            whole = train(codec, clips, fit, args.out, report)
        minutes = round(trained + (time.monotonic() - began) / 60, 4)
        write_json(args.out / MINUTES, {"minutes": minutes})
        if not whole:
            print(f"stopped; the same command goes on in {args.out}", file=sys.stderr)
            return 130
        generator = step_generator(fit.seed, 0, 0, "reach")
        crops = clips.crops(NORMALISED, generator, fit.still)
        normalise(codec, crops, encoder_trained=fit.encoder is None)
        facts: dict[str, Any] = {
            "command": command(args.out, settings),
            "minutes": round(minutes, 1),
            "parameters": sum(p.numel() for p in codec.parameters()),
            "clips": list(clips.names),
            "curve": read_json_lines(args.out / "metrics.jsonl"),
        }
        if (earlier := _checked_before(args.out)) is not None:
            facts["check"] = earlier
        ship(codec, args.out, facts)
        if checked is not None:
            facts["check"] = check(codec, checked)
            print_check(facts["check"])
            ship(codec, args.out, facts)
    return 0


def _checked_before(out: Path) -> dict[str, float] | None:
    """Return what `--check` found when this run ended before; None: nothing was checked."""
    path = out / FACTS
    found = read_object(path, "facts of a run").get("check") if path.exists() else None
    return found if isinstance(found, dict) else None


def _minutes(out: Path) -> float:
    """Return the minutes that a run has trained so far; 0 where it begins."""
    path = out / MINUTES
    return (
        float(read_object(path, "minutes of a run", "minutes")["minutes"]) if path.exists() else 0.0
    )


def command(out: Path, settings: Mapping[str, Any]) -> str:
    """Return the command line of a run."""
    words = ["python", "-m", "longtake.experiments.fit_autoencoder", "--out", str(out)]
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", f"{value:g}" if name == "rate" else str(value)]
    return shlex.join(words)


def print_check(values: dict[str, float]) -> None:
    """Print the PSNR of each clip, and the mean."""
    for name, value in values.items():
        print(f"{value:6.2f} dB  {name}")
    print(f"{sum(values.values()) / len(values):6.2f} dB  mean of {len(values)} clips", flush=True)


if __name__ == "__main__":
    sys.exit(main())
