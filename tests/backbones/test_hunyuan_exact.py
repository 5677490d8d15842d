"""Design §7.1 and §7.2: HunyuanVideo with memory is diffusers' wherever the two mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.backbones.blocks.rotary import RotaryAxes, rotary_table
from longtake.backbones.hunyuan.model import HunyuanBackbone
from longtake.backbones.hunyuan.specs import Hunyuan as Published
from longtake.backbones.wan.specs import TinyWan
from longtake.core.contract.backbone import check_backbone
from longtake.core.errors import UserError
from longtake.core.interfaces.backbone import target_positions
from longtake.core.values.text import Text

DTYPES = (torch.float32, torch.float64)
LIMITS = pytest.mark.parametrize(
    ("dtype", "gap"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)
QUICK = settings(max_examples=8, deadline=None)


def far(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


@torch.no_grad()
def velocity(
    model: HunyuanBackbone, video: Tensor, t: Tensor, frames: Tensor, text: Text, memory: Any = None
) -> Tensor:
    frames = frames.expand(video.shape[0], -1)
    return model.velocity(video, t, frames, model.context(text, memory))


@given(
    axes=st.sampled_from([(2, 2, 2), (4, 6, 6), (16, 24, 24), (16, 56, 56)]),
    size=st.tuples(*[st.integers(1, 9)] * 3),
    first=st.integers(0, 900),
)
@QUICK
def test_rotary_at_whole_places_is_diffusers_table(
    axes: tuple[int, int, int], size: tuple[int, int, int], first: int
) -> None:
    frames, rows, columns = size
    table = HunyuanVideoRotaryPosEmbed(2, 1, list(axes), 256.0)
    cos, sin = table(torch.empty(1, 1, first + frames, rows * 2, columns * 2))
    places = target_positions(torch.arange(first, first + frames)[None], rows, columns)
    ours, cells = rotary_table(RotaryAxes(256.0, axes, torch.float32), places), rows * columns
    assert torch.equal(ours.cos[0, :, 0], cos[first * cells :, 0::2])
    assert torch.equal(ours.sin[0, :, 0], sin[first * cells :, 1::2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 2, 2), (3, 6, 8), (2, 5, 7)])
@pytest.mark.parametrize("guidance", [6.0, None])
def test_no_memory_is_diffusers_to_the_bit(
    hunyuan: Any, size: tuple[int, int, int], dtype: torch.dtype, guidance: float | None
) -> None:
    model = hunyuan.small(dtype, guidance=guidance)
    video, text = hunyuan.noise(2, 16, *size).to(dtype), hunyuan.text(2).to("cpu", dtype)
    t = torch.rand(2)
    ours = velocity(model, video, t, hunyuan.frames(0, size[0]), text)
    assert torch.equal(ours, hunyuan.reference(hunyuan.twin(model), video, t, text, guidance))


def test_bf16_is_diffusers_to_the_bit(hunyuan: Any) -> None:
    """In bf16 the pipeline's guidance of 6.0 · 1000 is 6016."""
    model, text = hunyuan.small(torch.bfloat16), hunyuan.text(1).to("cpu", torch.bfloat16)
    video, t = hunyuan.noise(1, 16, 2, 4, 6).bfloat16(), torch.tensor([0.4])
    ours = velocity(model, video, t, hunyuan.frames(0, 2), text)
    assert torch.equal(ours, hunyuan.reference(hunyuan.twin(model), video, t, text))


def test_bf16_autocast_is_diffusers_to_the_bit(hunyuan: Any) -> None:
    model, video, text = hunyuan.small(), hunyuan.noise(1, 16, 2, 4, 6), hunyuan.text(1)
    t = torch.tensor([0.4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = velocity(model, video, t, hunyuan.frames(0, 2), text)
        theirs = hunyuan.reference(hunyuan.twin(model), video, t, text)
    assert torch.equal(ours, theirs)


def test_guidance_matters_and_is_the_specs(hunyuan: Any) -> None:
    video, text, t = hunyuan.noise(1, 16, 1, 4, 4), hunyuan.text(1), torch.tensor([0.4])
    outs = [
        velocity(hunyuan.small(guidance=g), video, t, hunyuan.frames(0, 1), text)
        for g in (6.0, 3.5)
    ]
    theirs = hunyuan.reference(hunyuan.twin(hunyuan.small()), video, t, text, 3.5)
    assert torch.equal(outs[1], theirs) and not torch.equal(*outs)


def padded(text: Text, lengths: list[int], fill: float = 0.0) -> Text:
    """The same prompts with padding behind their first tokens."""
    mask = torch.arange(text.mask.shape[1])[None] < torch.tensor(lengths)[:, None]
    return attrs.evolve(
        text, mask=mask, embeddings=text.embeddings.masked_fill(~mask[..., None], fill)
    )


@pytest.mark.slow
@LIMITS
def test_padded_prompts_are_diffusers_masked_ones(hunyuan: Any, dtype: Any, gap: float) -> None:
    """And, for what is cut away, diffusers' with the cut prompts to the bit."""
    model, video = hunyuan.small(dtype), hunyuan.noise(3, 16, 2, 5, 6).to(dtype)
    t, frames = torch.tensor([0.2, 0.5, 0.9]), hunyuan.frames(0, 2)
    text = hunyuan.text(3, length=9).to("cpu", dtype)
    for lengths in ([4, 4, 4], [1, 4, 7], [9, 2, 9]):
        prompts = padded(text, lengths, fill=7.0)
        ours = velocity(model, video, t, frames, prompts)
        assert far(ours, hunyuan.reference(hunyuan.twin(model), video, t, prompts)) < gap
        if len(set(lengths)) == 1:
            cut = text.embeddings[:, :4].contiguous()
            short = attrs.evolve(text, embeddings=cut, mask=text.mask[:, :4])
            assert torch.equal(ours, hunyuan.reference(hunyuan.twin(model), video, t, short))
        alone = [velocity(model, video[[i]], t[[i]], frames, prompts.select([i])) for i in range(3)]
        assert far(ours, torch.cat(alone)) < gap


def test_padding_may_stand_anywhere(hunyuan: Any) -> None:
    model, video, text = hunyuan.small(), hunyuan.noise(1, 16, 1, 4, 4), hunyuan.text(1, length=6)
    t, frames = torch.tensor([0.3]), hunyuan.frames(0, 1)
    mask = torch.tensor([[False, True, True, False, True, False]])
    short = attrs.evolve(text, embeddings=text.embeddings[:, [1, 2, 4]], mask=mask[:, [1, 2, 4]])
    ours = velocity(model, video, t, frames, attrs.evolve(text, mask=mask))
    assert torch.equal(ours, velocity(model, video, t, frames, short))


@pytest.mark.slow
@LIMITS
@pytest.mark.parametrize("shown", [[0, 1, 2, 3, 4], [0, 1, 2, 7, 9], [3, 4, 5, 6, 40]])
def test_patches_as_memory_are_the_longer_video(
    hunyuan: Any, shown: list[int], dtype: torch.dtype, gap: float
) -> None:
    model = hunyuan.small(dtype)
    video, text = hunyuan.noise(2, 16, 5, 5, 6).to(dtype), hunyuan.text(2).to("cpu", dtype)
    t, frames = torch.tensor([0.3, 0.9]), torch.tensor(shown)
    memory = hunyuan.patches(model, video[:, :, :3], frames[None, :3])
    other = hunyuan.twin(model)
    hunyuan.show_rows(other, shown)
    for prompts in (text, padded(text, [2, 4])):
        ours = velocity(model, video[:, :, 3:], t, frames[3:], prompts, memory)
        assert far(ours, hunyuan.reference(other, video, t, prompts)[:, :, 3:]) < gap


@pytest.mark.slow
@LIMITS
@pytest.mark.parametrize("shown", [[0, 1, 2], [0, 5, 6]])
def test_clean_memory_is_token_replace(
    hunyuan: Any, shown: list[int], dtype: torch.dtype, gap: float
) -> None:
    """Its first frame has time 0 and no guidance; the weights have the same names."""
    model = hunyuan.small(dtype, memory_time=0.0, image_condition="token_replace")
    video, text = hunyuan.noise(2, 16, 3, 5, 6).to(dtype), hunyuan.text(2).to("cpu", dtype)
    t, frames = torch.tensor([0.3, 0.9]), torch.tensor(shown)
    memory = hunyuan.patches(model, video[:, :, :1], frames[None, :1])
    ours = velocity(model, video[:, :, 1:], t, frames[1:], text, memory)
    other = hunyuan.twin(model)
    assert type(other.transformer_blocks[0]).__name__ == "HunyuanVideoTokenReplaceTransformerBlock"
    hunyuan.show_rows(other, shown)
    assert far(ours, hunyuan.reference(other, video, t, text)[:, :, 1:]) < gap
    plain = hunyuan.small(dtype, memory_time=0.0)
    assert torch.equal(velocity(plain, video[:, :, 1:], t, frames[1:], text, memory), ours)
    shared = hunyuan.small(dtype)
    assert far(velocity(shared, video[:, :, 1:], t, frames[1:], text, memory), ours) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "attention",
    [
        "full",
        pytest.param("isolated-causal", marks=pytest.mark.slow),
        pytest.param("isolated", marks=pytest.mark.slow),
    ],
)
def test_contract(hunyuan: Any, attention: str) -> None:
    check_backbone(hunyuan.small(attention=attention, memory_time=0.25))


@pytest.mark.slow
def test_contract_with_shared_time(hunyuan: Any) -> None:
    check_backbone(hunyuan.small())


def test_weights_that_diffusers_saved_load_to_the_same_bits(hunyuan: Any, tmp_path: Path) -> None:
    """The real load path: a folder that diffusers' own class wrote, in shards."""
    folder, written = tmp_path / "base", hunyuan.twin(hunyuan.small())
    written.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = HunyuanBackbone.load(hunyuan.spec(weights=str(folder)), seed=3)
    assert all(torch.equal(x, written.state_dict()[n]) for n, x in model.state_dict().items())
    # read back, too: where a tensor lies in memory decides on the last bits
    plain = HunyuanVideoTransformer3DModel.from_pretrained(folder, local_files_only=True)
    video, text, t = hunyuan.noise(1, 16, 2, 4, 4), hunyuan.text(1), torch.tensor([0.7])
    ours = velocity(model, video, t, hunyuan.frames(0, 2), text)
    assert torch.equal(ours, hunyuan.reference(plain, video, t, text))


def test_what_is_refused(hunyuan: Any, unchecked: None) -> None:
    model, video, t = hunyuan.small(), hunyuan.noise(1, 16, 3, 4, 4), torch.rand(1)
    text, frames = hunyuan.text(1), hunyuan.frames(0, 3)
    with pytest.raises(ValueError, match="one time a sample"):
        model.velocity(video, torch.rand(1, 3), frames, model.context(text))
    with pytest.raises(ValueError, match="frames are"):
        model.velocity(video, t, hunyuan.frames(0, 2), model.context(text))
    with pytest.raises(ValueError, match="pooled vector"):
        model.context(attrs.evolve(text, pooled=None))
    with pytest.raises(ValueError, match="no real token"):
        model.context(attrs.evolve(text, mask=torch.zeros_like(text.mask)))
    with pytest.raises(UserError, match="not TinyWan"):
        HunyuanBackbone.load(TinyWan())
    with pytest.raises(ValueError, match="add up to head_width 16"):
        hunyuan.spec(rope=(4, 4, 4))
    with pytest.raises(ValueError, match="must be > 0, or null"):
        hunyuan.spec(guidance=0.0)


def test_the_published_config_is_that_of_the_hub() -> None:
    """Source: transformer/config.json of hunyuanvideo-community/HunyuanVideo."""
    spec = Published()
    assert spec.config == {
        "in_channels": 16, "out_channels": 16, "num_attention_heads": 24,
        "attention_head_dim": 128, "num_layers": 20, "num_single_layers": 40,
        "num_refiner_layers": 2, "mlp_ratio": 4.0, "patch_size": 2, "patch_size_t": 1,
        "qk_norm": "rms_norm", "guidance_embeds": True, "text_embed_dim": 4096,
        "pooled_projection_dim": 768, "rope_theta": 256.0, "rope_axes_dim": (16, 56, 56),
        "image_condition_type": None,
    }  # fmt: skip
    assert (spec.geometry.blocks, spec.geometry.width, spec.geometry.fps) == (60, 3072, 24.0)
    assert (spec.shift, spec.guidance, spec.dtype) == (7.0, 6.0, "bfloat16")
