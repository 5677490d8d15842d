"""The built-in plugins at the door that third parties use, too."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.hooks import Plugin, impl
from ..core.interfaces.spec import PluginSpec
from . import specs


@impl
def longtake_compressors() -> list[Plugin]:
    """Return the built-in compressors."""
    return [
        _record(
            "conv",
            "the paper's encoder: LR tokens plus HR convs with attention",
            specs.Conv,
            "compressors.conv:ConvCompressor",
        ),
        _record(
            "transformer",
            "LR tokens plus a causal transformer on the full-size latents",
            specs.Transformer,
            "compressors.transformer:TransformerCompressor",
        ),
        _record(
            "dual-encoder",
            "several encoders side by side, by default 4x4x2 and 2x2x8",
            specs.DualEncoder,
            "compressors.dual:DualEncoderCompressor",
        ),
        _record(
            "window",
            "the newest latents uncompressed",
            specs.Window,
            "compressors.keyframes:WindowCompressor",
        ),
        _record(
            "pool",
            "means of the DiT's own tokens over a rate, nothing trained",
            specs.Pool,
            "compressors.pool:PoolCompressor",
        ),
        _record(
            "merge",
            "the DiT's own tokens, similar neighbours merged, nothing trained",
            specs.Merge,
            "compressors.merge:MergeCompressor",
        ),
        _record(
            "keyframes",
            "the newest of every so many latents or of each shot's first",
            specs.Keyframes,
            "compressors.keyframes:KeyframesCompressor",
        ),
        _record(
            "contact-sheet",
            "the newest frames shrunk into one 3x3 picture, encoded by the codec; needs pixels",
            specs.ContactSheet,
            "compressors.sheet:ContactSheetCompressor",
        ),
        _record(
            "patchifier",
            "FramePack: one strided projection a rate, one for all or coarser with age",
            specs.Patchifier,
            "compressors.patchifier:PatchifierCompressor",
        ),
        _record(
            "vae-proj",
            "an external high-compression video VAE and a projection; needs pixels",
            specs.VaeProj,
            "compressors.vae_proj:VaeProjCompressor",
        ),
        _record(
            "clip",
            "CLIP or SigLIP embeddings of every k-th frame and a projection; needs pixels",
            specs.Clip,
            "compressors.clip:ClipCompressor",
        ),
    ]


@impl
def longtake_maskers() -> list[Plugin]:
    """Return the built-in maskers."""
    return [
        _record(
            "noise",
            "noise of a random level on every frame outside Ω",
            specs.Noise,
            "maskers.hiding:NoiseMasker",
        ),
        _record(
            "scale",
            "values of every frame outside Ω shrink towards 0",
            specs.Scale,
            "maskers.hiding:ScaleMasker",
        ),
        _record(
            "shift",
            "values of every frame outside Ω move by a random vector",
            specs.Shift,
            "maskers.hiding:ShiftMasker",
        ),
        _record(
            "drop",
            "every frame outside Ω replaced by zeros or the mean",
            specs.Drop,
            "maskers.hiding:DropMasker",
        ),
        _record(
            "none",
            "control: nothing is masked",
            specs.Unmasked,
            "maskers.hiding:NoMasker",
        ),
    ]


@impl
def longtake_retrievers() -> list[Plugin]:
    """Return the built-in retrievers and floors."""
    return [
        _record(
            "flow",
            "the DiT denoises the frames from memory, in one step or many",
            specs.Flow,
            "retrievers.flow:FlowRetriever",
        ),
        _record(
            "probe",
            "a small head fitted on the frozen memory (`longtake probe`), without the DiT",
            specs.Probe,
            "retrievers.probe:ProbeRetriever",
        ),
        _record(
            "upsample",
            "floor, the bar: LR latents decoded and upsampled",
            specs.Upsample,
            "retrievers.floors:UpsampleRetriever",
        ),
        _record(
            "thumbnail",
            "floor, a guide: raw pixels of the same rate, upsampled",
            specs.Thumbnail,
            "retrievers.floors:ThumbnailRetriever",
        ),
        _record(
            "mean-frame",
            "floor: the mean of all frames",
            specs.MeanFrame,
            "retrievers.floors:MeanFrameRetriever",
        ),
    ]


@impl
def longtake_metrics() -> list[Plugin]:
    """Return the built-in metrics."""
    return [
        _record(
            "psnr",
            "peak signal-to-noise ratio of each frame, dB",
            specs.Psnr,
            "metrics.pixels:PsnrMetric",
        ),
        _record(
            "ssim",
            "structural similarity of each frame, −1 to 1",
            specs.Ssim,
            "metrics.pixels:SsimMetric",
        ),
        _record(
            "ms-ssim",
            "structural similarity over several scales, 0 to 1",
            specs.MsSsim,
            "metrics.pixels:MsSsimMetric",
        ),
        _record(
            "high-band",
            "energy of fine detail over the original's; 1 is as much",
            specs.HighBand,
            "metrics.pixels:HighBandMetric",
        ),
        _record(
            "lpips",
            "learned perceptual distance, lower is better; needs torchvision and its weights",
            specs.Lpips,
            "metrics.lpips:LpipsMetric",
            {"torchvision": "longtake[lpips]"},
        ),
    ]


def _record(
    name: str,
    summary: str,
    spec: type[PluginSpec],
    target: str,
    requires: Mapping[str, str] | None = None,
) -> Plugin:
    place = f"{__package__}.{target}"
    return Plugin(name=name, summary=summary, spec=spec, target=place, requires=requires or {})
