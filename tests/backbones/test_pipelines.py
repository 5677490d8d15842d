"""Sampling without memory is diffusers' pipelines to the bit (fp32, CPU)."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from torch import Tensor

from longtake.backbones.wan.experts import Experts
from longtake.core.sample.loop import Conditioning, draw_noise, sample
from longtake.core.sample.spec import Sampler
from longtake.core.values.grid import Size3
from longtake.core.values.text import Text

from .hunyuan_kit import HunyuanKit

pytestmark = pytest.mark.slow  # whole samplings; test_generation_loop has a short one

SHAPE, SIZE = (2, 16, 3, 4, 6), Size3(time=3, height=4, width=6)
ASKED: dict[str, Any] = dict(height=32, width=48, num_frames=9, output_type="latent")


def wan_scheduler(shift: float) -> UniPCMultistepScheduler:
    """As the published Wans have it."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


def run_wan(model: Any, shift: float, prompt: Text, negative: Text, **asked: Any) -> Tensor:
    parts = dict(tokenizer=None, text_encoder=None, vae=None, scheduler=wan_scheduler(shift))
    config = {key: asked.pop(key) for key in ("boundary_ratio", "transformer_2") if key in asked}
    by_token = asked.pop("expand_timesteps", False)
    pipeline = WanPipeline(transformer=model, expand_timesteps=by_token, **parts, **config)
    pipeline.set_progress_bar_config(disable=True)
    empty = negative.embeddings.expand(prompt.embeddings.shape[0], -1, -1)
    out = pipeline(prompt_embeds=prompt.embeddings, negative_prompt_embeds=empty, **(ASKED | asked))
    return out.frames


@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (4, 5.0), (12, 8.0)])
@pytest.mark.parametrize("time", ["sample", "token"])
def test_wan(wan: Any, time: str, steps: int, shift: float) -> None:
    model, noise = wan.small(time=time), wan.noise(*SHAPE)
    given = Conditioning(text=wan.text(2), null_text=wan.text(1, seed=9))
    wanted = run_wan(
        wan.twin(model), shift, given.text, given.null_text, latents=noise,
        num_inference_steps=steps, guidance_scale=5.0, expand_timesteps=time == "token",
    )  # fmt: skip
    sampler = Sampler(steps=steps, guidance=5.0)
    assert torch.equal(
        sample(model, sampler, noise, wan.frames(0, 3, 2), given, shift=shift), wanted
    )


@pytest.mark.parametrize("time", ["sample", "token"])
def test_whole_timesteps_that_float32_cannot_count(wan: Any, time: str) -> None:
    """Here 502, where 1000·t in float32 gives another; 50 steps of shift 3 pass 251."""
    model, noise = wan.small(layers=1, time=time), wan.noise(1, 16, 1, 2, 2)
    given, shift, steps = Conditioning(text=wan.text(1), null_text=wan.text(1)), 8.0, 9
    scheduler = wan_scheduler(shift)
    scheduler.set_timesteps(steps)
    assert bool(((scheduler.timesteps / 1000 * 1000) != scheduler.timesteps).any())
    wanted = run_wan(
        wan.twin(model), shift, given.text, given.null_text, latents=noise,
        num_inference_steps=steps, guidance_scale=1.0, expand_timesteps=time == "token",
    )  # fmt: skip
    sampler = Sampler(steps=steps, guidance=1.0)
    assert torch.equal(sample(model, sampler, noise, wan.frames(0, 1), given, shift=shift), wanted)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_wan_from_a_seed(wan: Any, guidance: float) -> None:
    model, given = wan.small(), Conditioning(text=wan.text(2), null_text=wan.text(2, seed=9))
    wanted = run_wan(
        wan.twin(model), 3.0, given.text, given.null_text, num_inference_steps=3,
        generator=torch.Generator().manual_seed(7), guidance_scale=guidance,
    )  # fmt: skip
    noise = draw_noise(16, SIZE, torch.Generator().manual_seed(7), batch=2)
    sampler = Sampler(steps=3, guidance=guidance, shift=3.0)
    assert torch.equal(sample(model, sampler, noise, wan.frames(0, 3, 2), given, shift=9.0), wanted)


@pytest.mark.parametrize(("boundary", "low"), [(0.875, 3.0), (0.9, None), (0.5, 4.0)])
def test_wan_of_two_experts(wan: Any, boundary: float, low: float | None) -> None:
    high, other = wan.small(begin="diffusers"), wan.small(begin="local")
    model, noise = Experts(high, other, boundary), wan.noise(*SHAPE)
    given = Conditioning(text=wan.text(2), null_text=wan.text(1, seed=9))
    wanted = run_wan(
        wan.twin(high), 5.0, given.text, given.null_text, transformer_2=wan.twin(other),
        boundary_ratio=boundary, latents=noise, num_inference_steps=10, guidance_scale=4.0,
        guidance_scale_2=low,
    )  # fmt: skip
    sampler = Sampler(steps=10, guidance=4.0, low_guidance=low, low_below=boundary)
    found = sample(model, sampler, noise, wan.frames(0, 3, 2), given, shift=5.0)
    assert torch.equal(found, wanted)
    one = sample(high, sampler, noise, wan.frames(0, 3, 2), given, shift=5.0)
    assert not torch.equal(one, wanted)


def test_two_experts_remember_once(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, noise = Experts(wan.isolated(), wan.isolated(begin="diffusers"), 0.8), wan.noise(*SHAPE)
    given = Conditioning(text=wan.text(2), null_text=wan.text(1, seed=9), memory=wan.memory(2, 5))
    calls, remember = [], Experts.remember
    monkeypatch.setattr(
        Experts, "remember", lambda self, *args: (calls.append(1), remember(self, *args))[1]
    )
    sampler, frames = Sampler(steps=4), wan.frames(7, 3, 2)
    found = sample(model, sampler, noise, frames, given, shift=3.0)
    assert len(calls) == 1
    monkeypatch.setattr(Experts, "caches", False)
    assert torch.equal(sample(model, sampler, noise, frames, given, shift=3.0), found)
    assert len(calls) == 1


@pytest.mark.parametrize("true_guidance", [1.0, 2.5])
@pytest.mark.parametrize("steps", [1, 7])
def test_hunyuan(steps: int, true_guidance: float) -> None:
    kit = HunyuanKit()
    model, noise = kit.small(guidance=6.0), kit.noise(*SHAPE)
    text, negative = kit.text(2), kit.text(2, seed=9)
    pipeline = HunyuanVideoPipeline(
        text_encoder=None, tokenizer=None, vae=None, text_encoder_2=None, tokenizer_2=None,
        transformer=kit.twin(model), scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        prompt_embeds=text.embeddings, pooled_prompt_embeds=text.pooled,
        prompt_attention_mask=text.mask, negative_prompt_embeds=negative.embeddings,
        negative_pooled_prompt_embeds=negative.pooled, negative_prompt_attention_mask=negative.mask,
        latents=noise, num_inference_steps=steps, guidance_scale=6.0,
        true_cfg_scale=true_guidance, **ASKED,
    ).frames  # fmt: skip
    sampler = Sampler(scheduler="euler", steps=steps, guidance=true_guidance)
    given = Conditioning(text=text, null_text=negative)
    found = sample(model, sampler, noise, kit.frames(0, 3, 2), given, shift=7.0)
    assert torch.equal(found, wanted)


@torch.no_grad()
def test_hunyuan_reads_no_padding() -> None:
    """The pipeline keeps states beyond the prompt, which its mask hides; we keep zeros."""
    kit = HunyuanKit()
    model, noise = kit.small(guidance=6.0), kit.noise(1, 16, 2, 4, 6)
    text = kit.text(1, length=6)
    masked = attrs.evolve(text, mask=torch.arange(6)[None] < 4)
    wanted = kit.reference(kit.twin(model), noise, torch.tensor([0.7]), masked)
    zeroed = attrs.evolve(masked, embeddings=text.embeddings * masked.mask[..., None])
    found = model.velocity(
        noise, torch.tensor([0.7]), kit.frames(0, 2), model.context(zeroed)
    )  # fmt: skip
    assert float((found - wanted).abs().max()) < 1e-5
