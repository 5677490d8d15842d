from __future__ import annotations

import attrs
import pytest
import torch

from longtake.backbones.codecs.dct import DctCodec
from longtake.backbones.codecs.specs import Dct
from longtake.core.contract.retriever import check_retriever
from longtake.core.errors import UserError
from longtake.core.interfaces.backbone import (
    Backbone,
    Cache,
    Call,
    Context,
    ContextCall,
    VelocityCall,
)
from longtake.core.interfaces.codec import decode_among, frames_of, from_bytes, to_bytes
from longtake.core.interfaces.retriever import LatentFrames, PixelFrames, Scene
from longtake.core.values.grid import Geometry, Rate, Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, Part
from longtake.core.values.text import Text
from longtake.plugins.retrievers.floors import (
    MeanFrameRetriever,
    ThumbnailRetriever,
    UpsampleRetriever,
)
from longtake.plugins.retrievers.flow import FlowRetriever
from longtake.plugins.retrievers.specs import Flow, MeanFrame, Thumbnail, Upsample

from ..small import encode_lowres

RATE = Rate(height=2, width=2, time=2)
CODEC = DctCodec(Dct(channels=16))
STARTS = torch.tensor([0, 4])


class Oracle(Backbone):
    """Knows the past of both samples: v = (x − x₀)/t, with x₀ + what memory and prompt add."""

    def __init__(self, past: torch.Tensor) -> None:
        super().__init__()
        self.past = past
        self.calls: list[VelocityCall] = []

    @property
    def geometry(self) -> Geometry:
        return Geometry(
            channels=16, vae_stride=CODEC.stride, patch=Size3(time=1, height=2, width=2),
            width=8, blocks=1, fps=8.0,
        )  # fmt: skip

    def forward(self, call: Call) -> Cache | Context | torch.Tensor:
        if isinstance(call, ContextCall):
            assert isinstance(call.memory, Memory)
            return Context(text=call.text, memory=call.memory.joined())
        assert isinstance(call, VelocityCall)
        self.calls.append(call)
        index = (call.frames - STARTS[:, None])[:, None, :, None, None]
        x0 = self.past.gather(2, index.expand(-1, 16, -1, *self.past.shape[3:]))
        said = call.context.text.embeddings.mean(dim=(1, 2))
        held = 0.0 if call.context.memory is None else call.context.memory.tokens.mean(dim=(1, 2))
        x0 = x0 + (said + held)[:, None, None, None, None]
        return (call.noisy - x0) / call.t[:, None, None, None, None]


# Retrievers use geometry, context and velocity: the rest of the interface stays abstract here.
Oracle.__abstractmethods__ = frozenset()


def text(value: float, batch: int = 2) -> Text:
    mask = torch.ones(batch, 3, dtype=torch.bool)
    return Text(embeddings=torch.full((batch, 3, 4), value), mask=mask)


def memory(value: float) -> Memory:
    places = torch.zeros(2, 5, 3, dtype=torch.float64)
    part = Part(
        name="m", tokens=torch.full((2, 5, 8), value), positions=places, extents=places + 1,
        valid=torch.ones(2, 5, dtype=torch.bool),
    )  # fmt: skip
    return Memory(parts=(part,))


def scene(time: int = 6, said: float = 0.0, held: float = 0.0, rate: Rate = RATE) -> Scene:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, 3, 4 * time - 3, 3, 5, generator=generator)
    size = (4 * time - 3, 40, 56)
    pixels = to_bytes(torch.nn.functional.interpolate(coarse, size=size, mode="trilinear") * 2 - 1)
    video = from_bytes(pixels)
    latents, _ = CODEC.encode(video)
    history = History(
        latents=latents, lr={rate: encode_lowres(CODEC, rate, [video])}, start=STARTS, pixels=pixels
    )
    return Scene(
        memory=memory(held), history=history, size=history.size, text=text(said),
        null_text=text(0.0, 1), backbone=Oracle(latents), codec=CODEC, shift=3.0,
    )  # fmt: skip


def flow(given: Scene, asked: list[list[int]], seed: int = 0, **fields: float) -> torch.Tensor:
    retriever = FlowRetriever(Flow(**fields))  # type: ignore[arg-type]
    found = retriever(given, torch.tensor(asked), torch.Generator().manual_seed(seed))
    assert isinstance(found, LatentFrames)
    return found.latents


def truth(given: Scene, asked: list[list[int]]) -> torch.Tensor:
    rows = [x[:, i] for x, i in zip(given.history.latents, asked, strict=True)]
    return torch.stack(rows)


def pixels(given: Scene, latent: int) -> torch.Tensor:
    assert given.history.pixels is not None
    at = frames_of(latent, 4)
    return from_bytes(given.history.pixels)[:, :, at.start : at.stop]


ALL = [
    FlowRetriever(Flow()),
    FlowRetriever(Flow(steps=3, guidance=2.0)),
    UpsampleRetriever(Upsample(rate=RATE)),
    ThumbnailRetriever(Thumbnail(rate=RATE)),
    MeanFrameRetriever(MeanFrame()),
]


@pytest.mark.parametrize("retriever", ALL, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("time", [2, 6])
def test_keeps_the_contract(retriever: FlowRetriever, time: int) -> None:
    given = scene(time, held=0.5)
    oracle = given.backbone
    check_retriever(retriever, given)
    assert oracle is given.backbone


def test_contract_catches_a_retriever_that_looks_at_the_history() -> None:
    class Cheat(FlowRetriever):
        def __call__(self, scene, omega, generator):  # type: ignore[no-untyped-def]
            at = omega[0].tolist()
            return LatentFrames(latents=scene.history.latents[:, :, at])

    with pytest.raises(AssertionError, match="the history is read"):
        check_retriever(Cheat(Flow()), scene())


@pytest.mark.parametrize("steps", [1, 2, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_an_exact_velocity_gives_the_frames_back(steps: int, shift: float) -> None:
    given = attrs.evolve(scene(), shift=shift)
    asked = [[0, 2, 5], [1, 3, 4]]
    assert torch.allclose(flow(given, asked, steps=steps), truth(given, asked), atol=1e-4)


def test_one_step_is_what_the_velocity_says_at_pure_noise() -> None:
    given = scene()
    flow(given, [[3], [3]], steps=1, seed=7)
    (call,) = given.backbone.calls  # type: ignore[union-attr]
    assert call.t.tolist() == [1.0, 1.0]
    noise = torch.randn(2, 16, 1, 5, 7, generator=torch.Generator().manual_seed(7))
    assert torch.equal(call.noisy, noise)
    assert call.frames.tolist() == [[3], [7]]


def test_steps_are_evenly_spaced_times_shifted_once() -> None:
    given = scene()
    flow(given, [[3], [3]], steps=4)
    times = [float(c.t[0]) for c in given.backbone.calls]  # type: ignore[union-attr]
    even = [1.0, 0.75, 0.5, 0.25]
    assert times == pytest.approx([3 * t / (1 + 2 * t) for t in even], abs=1e-6)


def test_memory_reaches_the_backbone() -> None:
    asked = [[2], [2]]
    given = scene(held=0.75)
    assert torch.allclose(flow(given, asked), truth(given, asked) + 0.75, atol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 1.0, 1.5, 6.0])
def test_guidance_weighs_the_prompt_against_the_empty_one(weight: float) -> None:
    asked = [[1, 4], [2, 5]]
    given = scene(said=0.25)
    found = flow(given, asked, guidance=weight, steps=2)
    assert torch.allclose(found, truth(given, asked) + weight * 0.25, atol=1e-4)
    branches = 1 if weight == 1.0 else 2
    assert len(given.backbone.calls) == 2 * branches  # type: ignore[union-attr]


def test_groups_change_passes_but_not_frames() -> None:
    one, four = scene(), scene()
    asked = [[0, 1, 2, 3, 5]] * 2
    singly, together = flow(one, asked, group=1), flow(four, asked, group=4)
    assert [c.frames.shape[1] for c in one.backbone.calls] == [1] * 5  # type: ignore[union-attr]
    assert [c.frames.shape[1] for c in four.backbone.calls] == [4, 1]  # type: ignore[union-attr]
    noise = torch.cat([c.noisy for c in one.backbone.calls], dim=2)  # type: ignore[union-attr]
    grouped = torch.cat([c.noisy for c in four.backbone.calls], dim=2)  # type: ignore[union-attr]
    assert torch.equal(noise, grouped)
    assert torch.allclose(singly, together, atol=1e-5)


def test_retrieved_latents_decode_to_the_frames() -> None:
    given = scene()
    found = flow(given, [[0, 3]] * 2)
    codec_only, _ = CODEC.decode(given.history.latents)
    for column, latent in enumerate((0, 3)):
        at = frames_of(latent, 4)
        frames = decode_among(CODEC, given.history.latents, latent, found[:, :, [column]])
        assert torch.allclose(frames, codec_only[:, :, at.start : at.stop].clamp(-1, 1), atol=1e-4)


FLOORS = [UpsampleRetriever(Upsample(rate=RATE)), ThumbnailRetriever(Thumbnail(rate=RATE))]


def floor(retriever: UpsampleRetriever, given: Scene, asked: list[int]) -> torch.Tensor:
    omega = torch.tensor([asked] * given.history.batch)
    found = retriever(given, omega, torch.Generator())
    assert isinstance(found, PixelFrames)
    return found.pixels


@pytest.mark.parametrize("retriever", FLOORS, ids=lambda r: type(r).__name__)
def test_floors_stand_where_the_video_stands(retriever: UpsampleRetriever) -> None:
    """A smooth, still video comes back nearly as it is: no shift, no flip, no wrong colour."""
    given = scene()
    colours = torch.tensor([0.2, -0.2, 0.1]).reshape(1, 3, 1, 1, 1)
    ramp = (torch.linspace(-0.6, 0.6, 56) + colours).expand(2, 3, 21, 40, 56)
    lr = {RATE: encode_lowres(CODEC, RATE, [ramp])}
    still = attrs.evolve(given.history, lr=lr, pixels=to_bytes(ramp))
    found = floor(retriever, attrs.evolve(given, history=still), [0, 3])
    assert found.shape == (2, 3, 5, 40, 56)
    gap = (found - ramp[:, :, :5]).abs()
    assert float(gap[..., 4:-16].max()) < 0.05  # the right edge is padded, and blurs


@pytest.mark.parametrize("time", [2, 8])
def test_each_frame_takes_the_lr_frame_that_covers_it(time: int) -> None:
    """Frames of equal brightness k/100: LR frame j of r = 2 holds the mean of 2j − 1 and 2j."""
    rate = Rate(height=2, width=2, time=time)
    given = scene()
    level = torch.arange(21) / 25 - 0.4
    video = to_bytes(level.reshape(1, 1, 21, 1, 1).expand(2, 3, 21, 40, 56))
    flat = attrs.evolve(given, history=attrs.evolve(given.history, pixels=video))
    found = floor(ThumbnailRetriever(Thumbnail(rate=rate)), flat, [0, 1, 5])[0, 0, :, 20, 20]
    exact = from_bytes(video)[0, 0, :, 0, 0]
    last = 20 // time
    for value, frame in zip(found, [0, 1, 2, 3, 4, 17, 18, 19, 20], strict=True):
        j = min(-(-frame // time), last)
        expected = exact[time * (j - 1) + 1 : time * j + 1].mean() if j else exact[0]
        assert float(value) == pytest.approx(float(expected), abs=1e-5)


def test_upsample_repeats_the_last_complete_lr_latent() -> None:
    rate = Rate(height=2, width=2, time=4)
    given = scene(8, rate=rate)  # LR latents 0 and 1 hold latents 0 … 4; 5, 6, 7 are not complete
    found = floor(UpsampleRetriever(Upsample(rate=rate)), given, [4, 7])
    for frame in range(4, 8):
        assert torch.equal(found[:, :, frame], found[:, :, 3])


def test_ragged_samples_end_at_their_own_length() -> None:
    given = scene(7)
    short = attrs.evolve(given, history=attrs.evolve(given.history, length=torch.tensor([7, 4])))
    for retriever in (*FLOORS, MeanFrameRetriever(MeanFrame())):
        whole, cut = (floor(retriever, x, [1, 3]) for x in (given, short))  # type: ignore[arg-type]
        assert torch.equal(whole[0], cut[0])
    alone = attrs.evolve(
        given.history.select([1]), pixels=given.history.pixels[1:, :, :13],  # type: ignore[index]
        latents=given.history.latents[1:, :, :4], lr={RATE: given.history.lr[RATE][1:, :, :2]},
        length=torch.tensor([4]),
    )  # fmt: skip
    one = attrs.evolve(given, history=alone, size=alone.size)
    for retriever in (*FLOORS, MeanFrameRetriever(MeanFrame())):
        batched, single = floor(retriever, short, [1, 3]), floor(retriever, one, [1, 3])  # type: ignore[arg-type]
        assert torch.allclose(batched[1:], single, atol=1e-5)


def test_mean_frame_is_the_mean_of_all_frames() -> None:
    given = scene()
    assert given.history.pixels is not None
    found = floor(MeanFrameRetriever(MeanFrame()), given, [2])  # type: ignore[arg-type]
    mean = from_bytes(given.history.pixels).mean(dim=2)
    assert torch.allclose(found, mean[:, :, None].expand(-1, -1, 4, -1, -1), atol=1e-5)


def test_what_is_missing_is_said() -> None:
    given = scene()
    blank = attrs.evolve(given, history=attrs.evolve(given.history, pixels=None, lr={}))
    for retriever, word in zip(ALL[2:], ("LR latents at 2x2x2", "pixels", "pixels"), strict=True):
        with pytest.raises(UserError, match=word):
            floor(retriever, blank, [1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alike"):
        FLOORS[0](given, torch.tensor([[0], [1]]), torch.Generator())


def test_needs_name_what_must_be_cached() -> None:
    assert UpsampleRetriever.needs(Upsample(rate=RATE)).rates == frozenset({RATE})
    assert ThumbnailRetriever.needs(Thumbnail()).pixels
    assert not FlowRetriever.needs(Flow()).pixels
    assert FlowRetriever.learned
    assert not any(r.learned for r in ALL[2:])
