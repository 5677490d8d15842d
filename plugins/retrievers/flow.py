"""Retrieval by the DiT: φ⁻¹ as the paper trains it (method.md §1, §3)."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ...core.backbone import Context
from ...core.retriever import LatentFrames, Retriever, Scene
from ...core.shapes import Frames, Targets
from ..specs import Flow

SAMPLED = 20  # steps, ⚡ our choice


class FlowRetriever(Retriever[Flow]):
    """Gives Ω back from memory by denoising: one step is the posterior mean, many are a sample.

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
        """Give the latents of Ω `[B, C, K, H, W]`, float32, on the text's device."""
        device = scene.text.embeddings.device
        x = self._noise(scene, omega, generator).to(device)
        frames = scene.history.start[:, None].to(device) + omega.to(device)
        contexts = self._contexts(scene)
        groups = zip(
            x.split(self.spec.group, dim=2), frames.split(self.spec.group, dim=1), strict=True
        )
        found = [self._denoise(scene, part, at, contexts) for part, at in groups]
        return LatentFrames(latents=torch.cat(found, dim=2))

    def _noise(self, scene: Scene, omega: Frames, generator: torch.Generator) -> Targets:
        batch, count = omega.shape
        cells = (scene.size.height, scene.size.width)
        shape = (batch, scene.backbone.geometry.channels, count, *cells)
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    def _contexts(self, scene: Scene) -> tuple[Context, ...]:
        """Give the context of the prompt, and where guidance asks for it that of the empty one."""
        prompt = scene.backbone.context(scene.text, scene.memory)
        if self.spec.guidance == 1.0:
            return (prompt,)
        null, batch = scene.null_text, scene.text.embeddings.shape[0]
        if null.embeddings.shape[0] != batch:
            null = null.select([0] * batch)
        return (prompt, scene.backbone.context(null, scene.memory))

    def _denoise(
        self, scene: Scene, x: Targets, frames: Frames, contexts: tuple[Context, ...]
    ) -> Tensor:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=scene.shift)
        # Evenly spaced times, shifted once: without them diffusers shifts the last one twice.
        even = [1 - i / self.spec.steps for i in range(self.spec.steps)]
        scheduler.set_timesteps(sigmas=even, device=x.device)
        for step, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            t = sigma.to(x).expand(x.shape[0])
            velocity = self._velocity(scene, x, t, frames, contexts)
            x = scheduler.step(velocity, step, x, return_dict=False)[0]
        return x

    def _velocity(
        self, scene: Scene, x: Targets, t: Tensor, frames: Frames, contexts: tuple[Context, ...]
    ) -> Tensor:
        noisy = x.to(scene.text.embeddings.dtype)
        prompt, *empty = (scene.backbone.velocity(noisy, t, frames, c).float() for c in contexts)
        return empty[0] + self.spec.guidance * (prompt - empty[0]) if empty else prompt
