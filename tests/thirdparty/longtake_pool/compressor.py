"""The compressor: everything that `longtake.authors.Compressor` asks for."""

import attrs
import torch
import torch.nn.functional as F

from longtake.authors import (
    Compressor,
    Length,
    Memory,
    Needs,
    Part,
    Size3,
    pad_to,
    project,
    token_places,
)


class MeanPoolCompressor(Compressor):
    """One part, `mean-pool-<rate>`; the state holds the frames of the incomplete block."""

    def __init__(self, spec, fit):
        super().__init__(spec, fit)
        self.register_buffer("weight", fit.patch_weight.clone(), persistent=False)
        self.register_buffer("bias", fit.patch_bias.clone(), persistent=False)
        self.gain = torch.nn.Parameter(torch.ones(fit.geometry.width))

    @classmethod
    def needs(cls, spec):
        return Needs()

    @classmethod
    def context_length(cls, spec, geometry, size):
        return Length(tokens=spec.rate.token_grid(size, geometry.patch).cells)

    def forward(self, history):
        frames = self._frames(history.latents)
        return self._memory(frames, history.size, history.start, history.length, 0)

    def step(self, state, chunk):
        rate, frames, before = self.spec.rate, self._frames(chunk.latents), 0
        if state is not None:
            frames = torch.cat([state["waiting"], frames], dim=1)
            before = int(state["seen"][0])
        size = attrs.evolve(chunk.size, time=before + chunk.size.time)
        ready = rate.settled_latents(size.time) - rate.settled_latents(before)
        new = {
            "waiting": frames[:, ready:].clone(memory_format=torch.contiguous_format),
            "seen": torch.tensor([size.time, size.height, size.width]),
            "start": chunk.start if state is None else state["start"],
        }
        skip = rate.settled_tokens(before)
        return new, self._memory(frames[:, :ready], size, new["start"], None, skip)

    def pending(self, state):
        time, height, width = state["seen"].tolist()
        size = Size3(time=time, height=height, width=width)
        skip = self.spec.rate.settled_tokens(time)
        return self._memory(state["waiting"], size, state["start"], None, skip)

    def _frames(self, latents):
        """Give the DiT's tokens averaged in space, one row a latent frame, [B, T, S, D]."""
        if latents.shape[2] == 0:
            return latents.new_zeros(latents.shape[0], 0, 1, self.geometry.width)
        rate, patch = self.spec.rate, self.geometry.patch
        whole = pad_to(latents, rate.height * patch.height, rate.width * patch.width)
        tokens = project(whole.to(self.weight.dtype), self.weight, self.bias)
        blocks = tokens.unflatten(3, (-1, rate.width)).unflatten(2, (-1, rate.height))
        return blocks.mean(dim=(3, 5)).flatten(2, 3)

    def _memory(self, frames, size, start, length, skip):
        """Give the mean of every block of frames; what is no real frame does not count."""
        rate, (batch, count) = self.spec.rate, frames.shape[:2]
        length = torch.full((batch,), size.time) if length is None else length
        latents = torch.arange(count) + (1 + (skip - 1) * rate.time if skip else 0)
        real = (latents < length.cpu()[:, None]).to(frames.device)
        frames = frames.masked_fill(~real[..., None, None], 0.0)
        lead = 0 if skip else rate.time - 1  # latent 0 is a block of its own
        pad = (0, 0, 0, 0, lead, -(count + lead) % rate.time)
        blocks = F.pad(frames, pad).unflatten(1, (-1, rate.time))
        shares = F.pad(real, pad[4:]).unflatten(1, (-1, rate.time)).sum(2).clamp(min=1)
        tokens = blocks.sum(2) / shares[..., None, None] * self.gain
        patch = self.geometry.patch
        grid = attrs.evolve(rate.token_grid(size, patch), time=tokens.shape[1] if count else 0)
        places = token_places(rate, size, patch, grid, start=start, length=length, skip=skip)
        names = ("positions", "extents", "valid")
        part = Part(
            name=f"mean-pool-{rate}",
            tokens=tokens[:, : grid.time].flatten(1, 2),
            **dict(zip(names, places, strict=True)),
        )
        return Memory(parts=(part,), size=size)
