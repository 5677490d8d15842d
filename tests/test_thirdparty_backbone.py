"""A stranger's backbone on a diffusers model, all of `longtake.authors`: exact, whole, exported."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from einops import rearrange
from torch import Tensor, nn

from longtake.authors import Backbone, LoRA, Memory, Text, UserError, check_backbone, grid_part
from longtake.backbones.lora.export import export
from longtake.core.hooks import Plugin
from longtake.core.interfaces.backbone import LAYOUTS
from longtake.core.tools.files import open_tensors
from longtake.core.values.grid import Rate, Size3

HERE = Path(__file__).parent / "thirdparty"
ATTENTION: list[Any] = [
    {},
    pytest.param({"attention": "isolated", "memory_time": 0.0}, marks=pytest.mark.slow),
    pytest.param({"attention": "isolated-causal", "memory_time": 0.0}, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def ltx() -> Iterator[Any]:
    """The model's module, as where the distribution is installed."""
    before = set(sys.modules)
    sys.path.insert(0, str(HERE))
    try:
        import longtake_pool.ltx_model as module  # type: ignore[import-not-found]

        yield module
    finally:
        sys.path.remove(str(HERE))
        for name in set(sys.modules) - before:
            if name.startswith("longtake_pool"):
                del sys.modules[name]


def small(ltx: Any, **changes: Any) -> Any:
    return ltx.LtxBackbone.load(ltx.TinyLtx(**changes), seed=0)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts(batch: int, real: int = 5) -> Text:
    mask = torch.arange(5).expand(batch, 5) < real
    return Text(embeddings=noise(batch, 5, 8, seed=2), mask=mask)


def theirs(model: Any, video: Tensor, t: Tensor, text: Text) -> Tensor:
    """diffusers' model with the same weights, called as its pipeline calls it."""
    twin = LTXVideoTransformer3DModel.from_config(dict(model.config))
    twin.load_state_dict(model.state_dict(), strict=True)
    frames, rows, columns = video.shape[2:]
    stride, fps = model.geometry.vae_stride, model.geometry.fps
    out: Tensor = twin.eval()(
        rearrange(video, "b c k h w -> b (k h w) c"), text.embeddings, t * 1000, text.mask.float(),
        num_frames=frames, height=rows, width=columns,
        rope_interpolation_scale=(stride.time / fps, stride.height, stride.width),
    ).sample  # fmt: skip
    return rearrange(out, "b (k h w) c -> b c k h w", k=frames, h=rows, w=columns)


def frames(first: int, count: int, batch: int) -> Tensor:
    return torch.arange(first, first + count).repeat(batch, 1)


@pytest.mark.parametrize("real", [5, 3])
@pytest.mark.parametrize("size", [(3, 4, 5), (1, 3, 1)])
def test_without_memory_it_is_diffusers_to_the_bit(
    ltx: Any, size: tuple[int, int, int], real: int
) -> None:
    model, video, t = small(ltx), noise(2, 16, *size), torch.tensor([0.3, 1.0])
    with torch.no_grad():
        ours = model.velocity(video, t, frames(0, size[0], 2), model.context(prompts(2, real)))
        assert torch.equal(ours, theirs(model, video, t, prompts(2, real)))
        assert ours.abs().max() > 0.1


def test_memory_of_the_models_own_tokens_is_the_longer_video(ltx: Any) -> None:
    model, video, t = small(ltx), noise(1, 16, 5, 4, 3), torch.tensor([0.6])
    tokens = rearrange(model.fit().tokens(video[:, :, :3]), "b t h w d -> b t (h w) d")
    one, patch = Rate(height=1, width=1, time=1), model.geometry.patch
    size = Size3(time=3, height=4, width=3)
    part = grid_part(
        "a", tokens, rate=one, size=size, patch=patch, start=torch.zeros(1, dtype=torch.int64),
        length=torch.tensor([3]),
    )  # fmt: skip
    with torch.no_grad():
        context = model.context(prompts(1), Memory(parts=(part,), size=size))
        ours = model.velocity(video[:, :, 3:], t, frames(3, 2, 1), context)
        whole = theirs(model, video, t, prompts(1))[:, :, 3:]
    assert (ours - whole).abs().max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("changes", ATTENTION)
def test_it_keeps_the_contract(ltx: Any, changes: dict[str, Any]) -> None:
    model = small(ltx, **changes)
    assert isinstance(model, Backbone)
    check_backbone(model)


def test_what_fsdp_and_compilation_ask_of_blocks_is_named(ltx: Any) -> None:
    model = small(ltx)
    assert model._no_split_modules == model._repeated_blocks == ["LtxBlock"]
    assert [type(block).__name__ for block in model.memory_blocks] == ["LtxBlock"] * 2
    with pytest.raises(TypeError, match="LtxBlock is no Linear"):
        ltx.LtxBlock.adopt(nn.Linear(1, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_its_lora_is_exported_and_read_back(ltx: Any, tmp_path: Path, layout: str) -> None:
    from safetensors.torch import save_file

    model, out = small(ltx), tmp_path / "out.safetensors"
    targets = ("attention", "cross-attention", "feed-forward")
    model.add_lora(LoRA(rank=2, alpha=4.0, targets=targets))
    for place, weight in enumerate(model.adapters().values()):
        weight.data.copy_(noise(*weight.shape, seed=place))
    model.save_adapters(tmp_path / "ours.safetensors")
    file = export(ltx.LtxBackbone, ltx.TinyLtx(), tmp_path / "ours.safetensors", layout)
    facts = {"longtake": json.dumps({"lora": file.facts})}
    save_file({k: x.contiguous() for k, x in file.tensors.items()}, out, file.metadata | facts)
    with open_tensors(out) as read:
        first = min(read.keys())
    assert first.startswith({"comfyui": "diffusion_model.transformer_blocks.0.attn1.to_k",
                             "kohya": "lora_unet_transformer_blocks_0_attn1_to_k",
                             "diffusers": "transformer.transformer_blocks.0"}[layout])  # fmt: skip
    other = small(ltx)
    other.add_lora(LoRA(rank=2, alpha=4.0, targets=targets))
    other.load_adapters(out)
    for name, weight in model.adapters().items():
        assert torch.allclose(other.adapters()[name], weight, atol=1e-6), name


def test_without_a_family_other_layouts_are_refused(ltx: Any, tmp_path: Path) -> None:
    class Nameless(ltx.LtxBackbone):  # type: ignore[misc]
        lora_family = None

    model = small(ltx)
    model.add_lora(LoRA(rank=2, alpha=4.0))
    model.save_adapters(tmp_path / "ours.safetensors")
    with pytest.raises(UserError, match="--to kohya: its names for LTXVideo.* are not known"):
        export(Nameless, ltx.TinyLtx(), tmp_path / "ours.safetensors", "kohya")


def test_weights_are_saved_and_loaded(ltx: Any, tmp_path: Path) -> None:
    model = small(ltx)
    model.save_weights(tmp_path / "base")
    again = small(ltx, weights=str(tmp_path / "base"))
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    assert type(again.memory_blocks[0]).__name__ == "LtxBlock"


def test_it_is_as_short_as_the_tutorial_says(ltx: Any) -> None:
    code = (HERE / "longtake_pool" / "ltx_model.py").read_text(encoding="utf-8")
    assert len([line for line in code.splitlines() if line.strip()]) <= 95
    (record,) = sys.modules["longtake_pool.ltx"].longtake_backbones()
    assert isinstance(record, Plugin) and record.load() is ltx.LtxBackbone
