"""The external VAE: blocks on an absolute grid, exact streaming, real files of diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.core.contract.compressor import check_compressor
from longtake.core.contract.samples import SMALL, alone, sample_fit, sample_history, shortened
from longtake.core.errors import UserError
from longtake.core.interfaces.codec import from_bytes
from longtake.core.interfaces.compressor import State
from longtake.core.values.grid import Rate, Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, merge
from longtake.plugins.compressors.specs import VaeProj
from longtake.plugins.compressors.vae_proj import VaeProjCompressor, rate_of

CHANNELS = 6


TIGHT = attrs.evolve(SMALL, vae_stride=Size3(time=4, height=2, width=2))  # few pixels a cell


def small_vae(*, causal: bool = True, patch: int = 4) -> AutoencoderKLLTXVideo:
    """LTX's class with a few thousand parameters; patch 4 gives its own 8×32×32 cells."""
    torch.manual_seed(0)
    vae = AutoencoderKLLTXVideo(
        patch_size=patch,
        latent_channels=CHANNELS, block_out_channels=(2, 2, 4, 4), layers_per_block=(1,) * 5,
        decoder_block_out_channels=(4, 4, 4, 4), decoder_layers_per_block=(1,) * 5,
        scaling_factor=1.5, encoder_causal=causal,
    )  # fmt: skip
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, CHANNELS))
    vae.latents_std.copy_(torch.linspace(0.5, 2.0, CHANNELS))
    return vae.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("ltx")
    small_vae().save_pretrained(place / "vae")
    small_vae(causal=False).save_pretrained(place / "both-ways")
    small_vae(patch=1).save_pretrained(place / "tight")
    small_vae(causal=False, patch=1).save_pretrained(place / "tight-both-ways")
    return str(place)


@pytest.fixture(params=["vae", "both-ways"])
def spec(folder: str, request: pytest.FixtureRequest) -> VaeProj:
    return VaeProj(weights=folder, subfolder=request.param, block=1)


@pytest.fixture
def causal(folder: str) -> VaeProj:
    return VaeProj(weights=folder, subfolder="vae", block=2)


def built(spec: VaeProj) -> VaeProjCompressor:
    torch.manual_seed(0)
    return VaeProjCompressor(spec, sample_fit()).double()


def history(size: Size3, batch: int = 2) -> History:
    return sample_history(size, VaeProjCompressor.needs(VaeProj()), batch, start=8)


def streamed(compressor: VaeProjCompressor, past: History, lengths: list[int]) -> Memory:
    state: State | None = None
    memories = []
    for chunk in past.chunks(lengths):
        state, memory = compressor.step(state, chunk)
        memories.append(memory)
    assert state is not None
    return merge([*memories, compressor.pending(state)])


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= 1e-10).all())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "block"),
    [("tight", 1), ("tight-both-ways", 2)],
)
def test_contract(folder: str, kind: str, block: int) -> None:
    spec = VaeProj(weights=folder, subfolder=kind, space=8, block=block)
    check_compressor(VaeProjCompressor, spec, geometry=TIGHT)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.data())
@torch.no_grad()
def test_any_chunking_gives_the_memory_of_the_whole(
    folder: str, time: int, height: int, width: int, block: int, data: st.DataObject
) -> None:
    spec = VaeProj(weights=folder, subfolder="both-ways", block=block)
    size = Size3(time=time, height=height, width=width)
    compressor, past = built(spec), history(size, 1)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(time - 1, 1)))) - {time})
    edges = [0, *cuts, time]
    whole = compressor(past)
    merged = streamed(compressor, past, [b - a for a, b in zip(edges, edges[1:], strict=False)])
    assert whole.length == VaeProjCompressor.context_length(spec, SMALL, size).tokens
    a, b = merged.parts[0], whole.parts[0]
    assert close(a.tokens, b.tokens)
    assert torch.equal(a.positions, b.positions) and torch.equal(a.extents, b.extents)


@pytest.mark.slow
def test_samples_of_a_ragged_batch_are_as_alone(spec: VaeProj) -> None:
    lengths = [9, 4, 1, 0]
    ragged = shortened(history(Size3(time=9, height=4, width=6), 4), lengths)
    compressor = built(spec)
    part = compressor(ragged).parts[0]
    for index, length in enumerate(lengths):
        own = compressor(alone(ragged, index)).parts[0]
        real = part.valid[index]
        assert int(real.sum()) == 2 * (1 + -(-(length - 1) // 2) if length else 0)
        assert close(part.tokens[index][real], own.tokens[0])
        assert torch.equal(part.positions[index][real], own.positions[0])


@torch.no_grad()
def test_one_block_over_the_video_gives_the_vaes_own_normalised_latents(folder: str) -> None:
    spec = VaeProj(weights=folder, subfolder="vae", block=8)
    compressor, past = built(spec), history(Size3(time=9, height=8, width=12), 1)
    assert past.pixels is not None
    vae = small_vae().double()
    z = vae.encode(from_bytes(past.pixels, torch.float64)).latent_dist.mode()
    mean, std = (x.view(1, -1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std))
    z = (z - mean) * 1.5 / std
    want = compressor.project(z.flatten(2).transpose(1, 2))
    assert close(compressor(past).parts[0].tokens, want)


@torch.no_grad()
def test_each_block_is_a_short_video_with_the_frame_before_it(causal: VaeProj) -> None:
    compressor, past = built(causal), history(Size3(time=11, height=4, width=4), 1)
    assert past.pixels is not None
    frames = from_bytes(past.pixels, torch.float64)
    vae = small_vae().double()
    last = torch.cat([frames[:, :, 32:41], frames[:, :, 40:41].expand(-1, -1, 8, -1, -1)], dim=2)
    cells = [vae.encode(x).latent_dist.mode() for x in (frames[:, :, :17], frames[:, :, 16:33])]
    # two latents, 33 … 40, of the third block: one cell of it, whole
    cells.append(vae.encode(last[:, :, :9]).latent_dist.mode())
    z = torch.cat([cells[0], cells[1][:, :, 1:], cells[2][:, :, 1:]], dim=2)
    mean, std = (x.view(1, -1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std))
    want = compressor.project(((z - mean) * 1.5 / std).flatten(2).transpose(1, 2))
    assert close(compressor(past).parts[0].tokens, want)


@torch.no_grad()
def test_the_state_holds_fewer_frames_than_a_block_and_one_more(causal: VaeProj) -> None:
    compressor, past = built(causal), history(Size3(time=30, height=4, width=4), 1)
    state, held = None, []
    for chunk in past.chunks([10, 7, 1, 1, 1, 1, 9]):
        state, _ = compressor.step(state, chunk)
        held.append(state["frames"].shape[2])
    assert max(held) <= 16 and all(x.dtype == torch.uint8 for x in [state["frames"]])


def test_only_the_projection_trains_and_is_saved(causal: VaeProj) -> None:
    compressor = VaeProjCompressor(causal, sample_fit(dtype=torch.float32))
    assert set(compressor.state_dict()) == {"project.weight", "project.bias"}
    past = history(Size3(time=5, height=4, width=4)).to("cpu", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        compressor(past).parts[0].tokens.float().square().sum().backward()
    assert all(bool(p.grad.any()) for p in compressor.parameters() if p.grad is not None)


@torch.no_grad()
def test_fresh_tokens_are_as_large_as_the_dits_own(causal: VaeProj) -> None:
    fit = sample_fit(dtype=torch.float32)
    weight = built(causal).project.weight
    inputs = torch.randn(4000, CHANNELS, dtype=torch.float64)
    ours = (inputs @ weight.T).square().mean().sqrt()
    latents = torch.randn(1, 3, 50, 16, 16)
    theirs = fit.tokens(latents).square().mean().sqrt()
    assert 0.5 < float(ours / theirs) < 2.0


def test_an_empty_history_keeps_the_projection_in_the_graph(causal: VaeProj) -> None:
    compressor = built(causal)
    memory = compressor(history(Size3(time=0, height=4, width=4)))
    assert memory.length == 0
    memory.anchor().backward()
    assert all(p.grad is not None for p in compressor.parameters())


def test_the_rate_follows_from_both_vaes() -> None:
    assert rate_of(VaeProj(), SMALL) == Rate.parse("2x2x2")
    wide = attrs.evolve(SMALL, vae_stride=Size3(time=4, height=16, width=16))
    assert rate_of(VaeProj(), wide) == Rate.parse("1x1x2")
    size = Size3(time=120, height=60, width=104)
    assert VaeProjCompressor.context_length(VaeProj(), SMALL, size).tokens == 61 * 15 * 26
    odd = attrs.evolve(SMALL, patch=Size3(time=1, height=3, width=2))
    with pytest.raises(UserError, match="8×32×32 must be 1, 2, 4 or 8 times the 24 pixel rows"):
        rate_of(VaeProj(), odd)


def test_bad_weights_are_one_line(folder: str, tmp_path: Path) -> None:
    def load(**fields: object) -> str:
        spec = VaeProj(**fields)  # type: ignore[arg-type]
        with pytest.raises(UserError) as found:
            VaeProjCompressor(spec, sample_fit())(history(Size3(time=1, height=4, width=4)))
        assert len(str(found.value).splitlines()) == 1
        return str(found.value)

    assert "needs weights: name a folder or hub id" in load()
    assert "no such folder; name a folder or hub id" in load(weights=str(tmp_path / "none"))
    assert "hold no config.json" in load(weights=folder, subfolder="nothing")
    assert "space is 16, but a cell of" in load(weights=folder, subfolder="vae", space=16)
    torch.manual_seed(0)
    other = tmp_path / "wan"
    other.mkdir()
    config = {"_class_name": AutoencoderKLWan.__name__, "latent_channels": 16}
    (other / "config.json").write_text(json.dumps(config))
    assert "is of AutoencoderKLWan" in load(weights=str(other))
    damaged = tmp_path / "damaged"
    small_vae().save_pretrained(damaged)
    (damaged / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    assert "cannot be read" in load(weights=str(damaged))


def test_what_cannot_follow_is_refused(causal: VaeProj) -> None:
    compressor, past = built(causal), history(Size3(time=5, height=4, width=4))
    state, _ = compressor.step(None, past.chunk(0, 2))
    with pytest.raises(ValueError, match="from latent 3 after 2 were seen"):
        compressor.step(state, past.chunk(3, 5))
    with pytest.raises(ValueError, match="needs the pixels"):
        compressor(attrs.evolve(past, pixels=None))
    assert past.pixels is not None
    with pytest.raises(ValueError, match="come with 17×32×32 pixels, not 9×32×32"):
        compressor(attrs.evolve(past, pixels=past.pixels[:, :, :9]))
