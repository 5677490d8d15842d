"""Image embeddings as memory: CLIP and SigLIP from real folders, places, streaming."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from longtake.core.contract.compressor import check_compressor
from longtake.core.contract.samples import SMALL, alone, sample_fit, sample_history, shortened
from longtake.core.errors import UserError
from longtake.core.interfaces.compressor import State
from longtake.core.values.grid import Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, merge
from longtake.plugins.compressors.clip import ClipCompressor
from longtake.plugins.compressors.specs import Clip

NUMBERS = {
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 24, "patch_size": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**NUMBERS)).save_pretrained(place / "clip")
    SiglipVisionModel(SiglipVisionConfig(**NUMBERS)).save_pretrained(place / "siglip")
    return str(place)


def built(spec: Clip) -> ClipCompressor:
    torch.manual_seed(0)
    return ClipCompressor(spec, sample_fit()).double()


def history(size: Size3, batch: int = 2) -> History:
    return sample_history(size, ClipCompressor.needs(Clip()), batch, start=8)


def streamed(compressor: ClipCompressor, past: History, lengths: list[int]) -> Memory:
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
    ("kind", "grid", "every"),
    [("clip", 1, 2), pytest.param("siglip", 3, 5, marks=pytest.mark.slow)],
)
def test_contract(folder: str, kind: str, grid: int, every: int) -> None:
    spec = Clip(weights=folder, subfolder=kind, grid=grid, every=every)
    check_compressor(ClipCompressor, spec)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4),
    st.data(),
)  # fmt: skip
@torch.no_grad()
def test_any_chunking_gives_the_memory_of_the_whole(
    folder: str, time: int, height: int, width: int, grid: int, every: int, data: st.DataObject
) -> None:
    spec = Clip(weights=folder, subfolder="clip", grid=grid, every=every)
    size = Size3(time=time, height=height, width=width)
    compressor, past = built(spec), history(size, 1)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(time - 1, 1)))) - {time})
    edges = [0, *cuts, time]
    whole = compressor(past)
    merged = streamed(compressor, past, [b - a for a, b in zip(edges, edges[1:], strict=False)])
    assert whole.length == ClipCompressor.context_length(spec, SMALL, size).tokens
    a, b = merged.parts[0], whole.parts[0]
    assert close(a.tokens, b.tokens)
    assert torch.equal(a.positions, b.positions) and torch.equal(a.extents, b.extents)


@pytest.mark.parametrize("grid", [1, 2])
def test_samples_of_a_ragged_batch_are_as_alone(folder: str, grid: int) -> None:
    spec = Clip(weights=folder, subfolder="clip", grid=grid)
    ragged = shortened(history(Size3(time=6, height=4, width=6), 4), [6, 3, 1, 0])
    compressor = built(spec)
    part = compressor(ragged).parts[0]
    for index, count in enumerate([3, 2, 1, 0]):
        own = compressor(alone(ragged, index)).parts[0]
        real = part.valid[index]
        assert int(real.sum()) == count * grid**2
        assert close(part.tokens[index][real], own.tokens[0])
        assert torch.equal(part.positions[index][real], own.positions[0])


@torch.no_grad()
def test_each_token_is_of_the_last_frame_of_its_latent(folder: str) -> None:
    compressor = built(Clip(weights=folder, subfolder="clip", every=2))
    past = history(Size3(time=5, height=4, width=4), 1)
    assert past.pixels is not None
    before = compressor(past).parts[0]
    assert before.positions[0].tolist() == [[8.0, 0.5, 0.5], [10.0, 0.5, 0.5], [12.0, 0.5, 0.5]]
    assert before.extents[0].tolist() == [[1.0, 2.0, 2.0]] * 3
    for frame in range(past.pixels.shape[2]):
        pixels = past.pixels.clone()
        pixels[:, :, frame] = 255 - pixels[:, :, frame]
        after = compressor(attrs.evolve(past, pixels=pixels)).parts[0]
        changed = (after.tokens != before.tokens).any(-1)[0].nonzero().flatten().tolist()
        assert changed == ([frame // 8] if frame % 8 == 0 else [])


@torch.no_grad()
def test_embeddings_are_transformers_own(folder: str) -> None:
    """Pooled and patch states of a frame of the encoder's size are those of its own class."""
    spec = Clip(weights=folder, subfolder="clip")
    geometry = attrs.evolve(SMALL, vae_stride=Size3(time=4, height=6, width=6))
    torch.manual_seed(0)
    compressor = ClipCompressor(spec, sample_fit(geometry, dtype=torch.float32))
    frame = torch.randint(256, (1, 3, 24, 24), dtype=torch.uint8)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    model = CLIPVisionModel.from_pretrained(f"{folder}/clip").eval()
    out = model(pixel_values=(frame / 255 - mean) / std)
    embed, float32 = compressor.encoder.embed, torch.float32
    assert torch.allclose(embed(frame, None, float32)[:, 0], out.pooler_output, atol=1e-5)
    cells = out.last_hidden_state[:, 1:]
    assert torch.allclose(embed(frame, (4, 4), float32), cells, atol=1e-5)
    halves = cells.unflatten(1, (2, 2, 2, 2)).mean(dim=(2, 4)).flatten(1, 2)
    assert torch.allclose(embed(frame, (2, 2), float32), halves, atol=1e-5)


def test_the_folders_own_colours_are_used(folder: str, tmp_path: Path) -> None:
    CLIPVisionModel.from_pretrained(f"{folder}/clip").save_pretrained(tmp_path)
    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(colours))
    found = built(Clip(weights=str(tmp_path))).encoder.colours
    assert found == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_only_the_projection_trains_and_is_saved(folder: str) -> None:
    spec = Clip(weights=folder, subfolder="siglip", grid=2)
    compressor = ClipCompressor(spec, sample_fit(dtype=torch.float32))
    assert set(compressor.state_dict()) == {"project.weight", "project.bias"}
    past = history(Size3(time=5, height=4, width=4)).to("cpu", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        compressor(past).parts[0].tokens.float().square().sum().backward()
    assert all(bool(p.grad.any()) for p in compressor.parameters() if p.grad is not None)


def test_an_empty_history_keeps_the_projection_in_the_graph(folder: str) -> None:
    for grid in (1, 2):
        compressor = built(Clip(weights=folder, subfolder="clip", grid=grid))
        memory = compressor(history(Size3(time=0, height=4, width=4)))
        assert memory.length == 0
        memory.anchor().backward()
        assert all(p.grad is not None for p in compressor.parameters())


def test_bad_weights_are_one_line(folder: str, tmp_path: Path) -> None:
    def load(**fields: object) -> str:
        spec = Clip(**fields)  # type: ignore[arg-type]
        with pytest.raises(UserError) as found:
            ClipCompressor(spec, sample_fit())(history(Size3(time=1, height=4, width=4)))
        assert len(str(found.value).splitlines()) == 1
        return str(found.value)

    assert "clip needs weights" in load()
    assert "no such folder; name a folder or hub id" in load(weights=str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "clip reads CLIP and SigLIP, but" in load(weights=str(tmp_path))
    damaged = tmp_path / "damaged"
    CLIPVisionModel.from_pretrained(f"{folder}/clip").save_pretrained(damaged)
    (damaged / "model.safetensors").write_bytes(b"nothing")
    assert "cannot be read" in load(weights=str(damaged))


def test_what_cannot_follow_is_refused(folder: str) -> None:
    compressor = built(Clip(weights=folder, subfolder="clip"))
    past = history(Size3(time=5, height=4, width=4))
    state, _ = compressor.step(None, past.chunk(0, 2))
    with pytest.raises(ValueError, match="from latent 3 after 2 were seen"):
        compressor.step(state, past.chunk(3, 5))
    with pytest.raises(ValueError, match="needs the pixels"):
        compressor(attrs.evolve(past, pixels=None))
    assert past.pixels is not None
    with pytest.raises(ValueError, match="come with 17×32×32 pixels, not 9×32×32"):
        compressor(attrs.evolve(past, pixels=past.pixels[:, :, :9]))
