"""Retrieval by the DiT: φ⁻¹ as the paper trains it (method.md §1, §3)."""

from __future__ import annotations

import torch

from ...core.interfaces.retriever import LatentFrames, Retriever, Scene
from ...core.sample.loop import Conditioning, Contexts, draw_noise, steps
from ...core.sample.spec import Sampler
from ...core.values.grid import Size3
from ...core.values.shapes import Frames, Targets
from .specs import Flow

SAMPLED = 20  # steps from which on it is a sample; our choice


class FlowRetriever(Retriever[Flow]):
    """Retrieves Ω from memory by denoising: one step is the posterior mean, many are a sample.

    Steps are those of diffusers' `FlowMatchEulerDiscreteScheduler` under the backbone's shift,
    from pure noise (t = 1). Each pass holds `group` latent frames of Ω; the noise of a frame does
    not depend on the grouping. Of the history only shape and start are read, never its content.
    """

    @property
    def samples(self) -> bool:
        """A sample takes 20 steps or more; fewer stay near the mean."""
        return self.spec.steps >= SAMPLED

    @torch.no_grad()
    def __call__(self, scene: Scene, omega: Frames, generator: torch.Generator) -> LatentFrames:
        """Return the latents of Ω `[B, C, K, H, W]`, float32, on the text's device."""
        device = scene.text.embeddings.device
        noise = self._noise(scene, omega, generator).to(device)
        frames = scene.history.start[:, None].to(device) + omega.to(device)
        sampler = Sampler(scheduler="euler", steps=self.spec.steps, guidance=self.spec.guidance)
        conditioning = Conditioning(text=scene.text, null_text=scene.null_text, memory=scene.memory)
        contexts = Contexts.of(scene.backbone, sampler, conditioning)
        groups = zip(
            noise.split(self.spec.group, dim=2), frames.split(self.spec.group, dim=1), strict=True
        )
        latents = [_denoised(scene, sampler, part, at, contexts) for part, at in groups]
        return LatentFrames(latents=torch.cat(latents, dim=2))

    def _noise(self, scene: Scene, omega: Frames, generator: torch.Generator) -> Targets:
        batch, count = omega.shape
        size = Size3(time=count, height=scene.size.height, width=scene.size.width)
        return draw_noise(scene.backbone.geometry.channels, size, generator, batch)


def _denoised(
    scene: Scene, sampler: Sampler, noise: Targets, frames: Frames, contexts: Contexts
) -> Targets:
    """Return what the last step makes of noise."""
    x = noise
    for step in steps(scene.backbone, sampler, noise, frames, contexts, shift=scene.shift):
        x = step.latents
    return x
