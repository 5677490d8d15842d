"""Design §7.3: FramePack's packed past as memory is diffusers' model."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import pytest
import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from torch import Tensor

from longtake.backbones.blocks.rotary import rotary_table
from longtake.backbones.hunyuan import specs
from longtake.backbones.hunyuan.model import FramePackBackbone, pooled_rotary_table, rotary_axes
from longtake.backbones.texts.specs import LlamaClip
from longtake.core.contract.backbone import check_backbone
from longtake.core.errors import UserError
from longtake.core.interfaces.compressor import pad_to
from longtake.core.tools.files import read_json, write_json
from longtake.core.values.grid import ceil_div
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, Part, spans
from longtake.core.values.text import Text
from longtake.plugins.compressors.patchifier import PatchifierCompressor
from longtake.plugins.compressors.specs import Patchifier

IMAGE = 9  # width of an embedding of an image
# FramePack's own order in time: the first frame, what is made now, then the past, newest first
NOW, FIRST, CLEAN, TWICE, FOUR = [1, 2, 3], [0], [4], [5, 6], [7, 8, 9, 10, 11, 12, 13, 14]
LIMITS = pytest.mark.parametrize(
    ("dtype", "gap"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)


def spec(hunyuan: Any, **changes: Any) -> specs.FramePack:
    numbers: dict[str, Any] = dict(
        heads=2, head_width=16, rope=(4, 6, 6), layers=1, single_layers=2, refiner_layers=1,
        mlp_ratio=2.0, weights=None, guidance=6.0, dtype="float32", image_width=IMAGE,
        text_encoder=LlamaClip(width=hunyuan.text_width, pooled=hunyuan.pooled_width),
    )  # fmt: skip
    return specs.FramePack(**(numbers | changes))


def small(hunyuan: Any, dtype: torch.dtype = torch.float32, **changes: Any) -> FramePackBackbone:
    model = FramePackBackbone.load(spec(hunyuan, **changes), seed=0)
    return model if dtype == model.dtype else model.to(dtype)


def twin(model: FramePackBackbone) -> Any:
    other = HunyuanVideoFramepackTransformer3DModel.from_config(dict(model.config))
    other.load_state_dict(model.state_dict(), strict=True, assign=True)
    return other.eval()


def seen(hunyuan: Any, batch: int, images: int = 5) -> Text:
    text = hunyuan.text(batch, length=6)
    return attrs.evolve(text, image=hunyuan.noise(batch, images, IMAGE, seed=8))


def place(tokens: Tensor, indices: list[int], rate: int, size: tuple[int, int]) -> Part:
    """Tokens of a projection with the real cells that they cover."""
    t0, t1 = (x + indices[0] for x in spans(len(indices), rate, ceil_div(len(indices), rate)))
    rows, columns = (spans(s // 2, rate, ceil_div(s // 2, rate)) for s in size)
    sides = [(t0, t1), rows, columns]
    middle = torch.stack(torch.meshgrid(*[(a + b) / 2 for a, b in sides], indexing="ij"), -1)
    extent = torch.stack(torch.meshgrid(*[b - a + 1 for a, b in sides], indexing="ij"), -1)
    shape = (*tokens.shape[:2], 3)
    return Part(
        name=f"{rate}-{indices[0]}",
        tokens=tokens,
        positions=middle.flatten(0, 2).expand(shape),
        extents=extent.flatten(0, 2).expand(shape),
        valid=torch.ones(tokens.shape[:2], dtype=torch.bool),
    )


class Past:
    """Latents of the past and, of a model's own projections, the memory in diffusers' order."""

    def __init__(self, hunyuan: Any, size: tuple[int, int], dtype: torch.dtype) -> None:
        self.size = size
        self.latents = {
            rate: hunyuan.noise(2, 16, len(at), *size, seed=rate).to(dtype)
            for rate, at in ((1, FIRST + CLEAN), (2, TWICE), (4, FOUR))
        }

    def memory(self, other: Any) -> Memory:
        with torch.no_grad():
            one, two, four = other.clean_x_embedder(*self.latents.values())
        cells = one.shape[1] // 2
        return Memory(
            parts=(
                place(four, FOUR, 4, self.size),
                place(two, TWICE, 2, self.size),
                place(one[:, :cells], FIRST, 1, self.size),
                place(one[:, cells:], CLEAN, 1, self.size),
            )
        )

    @torch.no_grad()
    def reference(
        self, other: Any, video: Tensor, t: Tensor, text: Text, past: Any = None, now: Any = None
    ) -> Tensor:
        image = text.image
        if image is None:
            image = torch.zeros(video.shape[0], 0, IMAGE, dtype=video.dtype)
        named = {f"latents_{n}": self.latents[r] for n, r in NAMES.items()}
        places = {f"indices_latents_{n}": torch.tensor((past or INDICES)[n]) for n in NAMES}
        scale = torch.tensor([6.0] * video.shape[0], dtype=video.dtype) * 1000
        out: Tensor = other(
            video, t * 1000, text.embeddings, text.mask, text.pooled, image,
            torch.tensor(now or NOW), scale, **named, **places,
        ).sample  # fmt: skip
        return out


NAMES = {"clean": 1, "history_2x": 2, "history_4x": 4}
INDICES = {"clean": FIRST + CLEAN, "history_2x": TWICE, "history_4x": FOUR}


@torch.no_grad()
def velocity(model: FramePackBackbone, video: Tensor, t: Tensor, text: Text, memory: Any) -> Tensor:
    frames = torch.tensor([NOW]).expand(video.shape[0], -1)
    return model.velocity(video, t, frames, model.context(text, memory))


def tables(model: FramePackBackbone, other: Any, indices: list[int], rate: int, size: Any) -> Any:
    """Our table and FramePack's pooled one, `[N, head width]` each."""
    part = place(torch.zeros(1, cells(indices, rate, size), 1), indices, rate, size)
    turns = pooled_rotary_table(rotary_axes(model.config), part.positions, part.extents)
    ours = tuple(x[0, :, 0].repeat_interleave(2, dim=1) for x in turns)
    table = other.rope(torch.tensor(indices), *size, torch.device("cpu"))
    kernel = (rate,) * 3
    return ours, type(other)._pad_rotary_emb(other, table, size[0] // 2, size[1] // 2, kernel)


def cells(indices: list[int], rate: int, size: tuple[int, int]) -> int:
    counts = (len(indices), size[0] // 2, size[1] // 2)
    return int(torch.tensor([ceil_div(n, rate) for n in counts]).prod())


@pytest.mark.slow
@pytest.mark.parametrize("size", [(16, 24), (12, 20), (10, 14), (60, 104)])
def test_the_rotary_table_is_the_pooled_one(hunyuan: Any, size: tuple[int, int]) -> None:
    model = small(hunyuan, head_width=128, heads=1, rope=(16, 56, 56))
    for indices, rate in ((TWICE, 2), (FOUR, 4), ([40, 41, 42, 43], 4)):
        ours, theirs = tables(model, twin(model), indices, rate, size)
        for one, two in zip(ours, theirs, strict=True):
            assert one.shape == two.shape and float((one - two).abs().max()) < 1e-5
    cos, sin = ours
    assert float((cos**2 + sin**2).min()) < 0.5  # no rotation


def test_whole_cells_turn_as_their_place(hunyuan: Any) -> None:
    axes = rotary_axes(small(hunyuan).config)
    places = hunyuan.noise(2, 7, 3).double().abs() * 9
    one, two = (
        pooled_rotary_table(axes, places, torch.ones_like(places)),
        rotary_table(axes, places),
    )
    assert all(map(torch.equal, one, two))


def test_a_moment_of_another_sample_does_not_count(hunyuan: Any) -> None:
    axes = rotary_axes(small(hunyuan).config)
    places = torch.zeros(2, 2, 3).double()
    extents = torch.tensor([[[1.0, 4, 4], [1, 2, 4]], [[1, 2, 2], [1, 1, 2]]]).double()
    both = pooled_rotary_table(axes, places, extents)
    alone = pooled_rotary_table(axes, places[1:], extents[1:])
    assert torch.equal(both.cos[1:], alone.cos)
    assert not torch.equal(both.cos[1:], pooled_rotary_table(axes, places[1:], extents[:1]).cos)


def pool_in_our_rounding(
    other: Any,
    model: FramePackBackbone,
    size: Any,
    places: Any = MappingProxyType({2: TWICE, 4: FOUR}),
) -> None:
    """Let the twin turn memory by our table: float32 means differ in their last bits."""
    ours = {rate: tables(model, other, at, rate, size)[0] for rate, at in places.items()}
    other._pad_rotary_emb = lambda table, height, width, kernel: ours[kernel[0]]


def padded(text: Text) -> Text:
    mask = torch.arange(6)[None] < torch.tensor([[3], [6]])
    return attrs.evolve(text, mask=mask)


@pytest.mark.slow
@LIMITS
@pytest.mark.parametrize("size", [(16, 24), (12, 20), (10, 14)])
@pytest.mark.parametrize("image", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_packed_past_is_diffusers(
    hunyuan: Any, size: tuple[int, int], dtype: torch.dtype, gap: float, image: bool
) -> None:
    """Also where the frame is no multiple of the blocks, and where prompts are padded."""
    model = small(hunyuan, dtype)
    other, past = twin(model), Past(hunyuan, size, dtype)
    if dtype == torch.float64:
        pool_in_our_rounding(other, model, size)
    video, t = hunyuan.noise(2, 16, len(NOW), *size).to(dtype), torch.tensor([0.3, 0.9])
    text = seen(hunyuan, 2).to("cpu", dtype)
    text = text if image else attrs.evolve(text, image=None)
    memory = past.memory(other)
    for prompts in (text, padded(text)):
        ours = velocity(model, video, t, prompts, memory)
        assert float((ours - past.reference(other, video, t, prompts)).abs().max()) < gap
    centre = small(hunyuan, dtype, rotary="centre")
    assert float((velocity(centre, video, t, text, memory) - ours).abs().max()) > 1e-3


def test_one_sample_reads_cut_prompts_as_diffusers_does(hunyuan: Any) -> None:
    """diffusers cuts too where there is one sample; then every bit is the same without memory."""
    model, size = small(hunyuan), (10, 14)
    other, past = twin(model), Past(hunyuan, size, torch.float32)
    past.latents = {rate: x[:1] for rate, x in past.latents.items()}
    video, t = hunyuan.noise(1, 16, len(NOW), *size), torch.tensor([0.3])
    text = padded(seen(hunyuan, 2)).select([0])
    ours = velocity(model, video, t, text, past.memory(other))
    assert float((ours - past.reference(other, video, t, text)).abs().max()) < 1e-5


def test_the_image_is_read(hunyuan: Any) -> None:
    model, video, t = small(hunyuan), hunyuan.noise(2, 16, 3, 4, 4), torch.tensor([0.3, 0.9])
    text = seen(hunyuan, 2)
    outs = [
        velocity(model, video, t, x, None)
        for x in (text, attrs.evolve(text, image=-text.image), attrs.evolve(text, image=None))
    ]
    assert not torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    swapped = text.select([1, 0]).where(torch.tensor([True, False]), text)
    assert swapped.image is not None and torch.equal(swapped.image, text.image[[1, 0]])
    assert torch.equal(swapped.embeddings[1], text.embeddings[1])


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["isolated", "full"])
def test_contract(hunyuan: Any, attention: str) -> None:
    check_backbone(small(hunyuan, attention=attention, memory_time=0.0))


@pytest.mark.slow
@LIMITS
@pytest.mark.parametrize("size", [(16, 24), (10, 14), (11, 13)])
@torch.no_grad()
def test_patchifier_with_its_weights_is_framepack(
    hunyuan: Any, size: tuple[int, int], dtype: torch.dtype, gap: float, tmp_path: Path
) -> None:
    """All of it: latents in, φ and G of one checkpoint; odd sizes are padded for diffusers."""
    model = small(hunyuan, dtype)
    twin(model).save_pretrained(tmp_path)
    ages = ((1, 1), (2, 2), (4, 16))
    compressor = PatchifierCompressor(
        Patchifier(schedule=ages, weights=str(tmp_path)), model.fit()
    ).to(dtype)
    video, t = hunyuan.noise(2, 16, 22, *size).to(dtype), torch.tensor([0.3, 0.9])
    memory = compressor(History(latents=video[:, :, :19]))
    text = seen(hunyuan, 2).to("cpu", dtype)
    frames = torch.arange(19, 22).expand(2, -1)
    ours = model.velocity(video[:, :, 19:], t, frames, model.context(text, memory))

    whole, other = pad_to(video, 2, 2), twin(model)
    grown = whole.shape[3:]
    if dtype == torch.float64:
        pool_in_our_rounding(other, model, grown, {2: [16, 17], 4: list(range(16))})
    past = Past(hunyuan, grown, dtype)
    past.latents = {1: whole[:, :, 18:19], 2: whole[:, :, 16:18], 4: whole[:, :, :16]}
    places = {"clean": [18], "history_2x": [16, 17], "history_4x": list(range(16))}
    theirs = past.reference(other, whole[:, :, 19:], t, text, places, [19, 20, 21])
    assert float((ours - theirs[..., : size[0], : size[1]]).abs().max()) < gap


@torch.no_grad()
def test_a_cache_is_the_memory(hunyuan: Any) -> None:
    model = small(hunyuan, attention="isolated", memory_time=0.0)
    memory = Past(hunyuan, (10, 14), torch.float32).memory(twin(model))
    video, t, text = hunyuan.noise(2, 16, 3, 10, 14), torch.rand(2), seen(hunyuan, 2)
    cache = model.remember(memory)
    one, two = (velocity(model, video, t, text, m) for m in (memory, cache))
    assert torch.equal(one, two)


@pytest.mark.slow
def test_weights_load_from_either_folder(hunyuan: Any, tmp_path: Path) -> None:
    """As diffusers writes them, and under the class name of FramePack's own release."""
    model = small(hunyuan)
    given = spec(hunyuan, weights=str(tmp_path))
    twin(model).save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json", "config")
    for name in ("HunyuanVideoFramepackTransformer3DModel", "HunyuanVideoTransformer3DModelPacked"):
        write_json(tmp_path / "config.json", config | {"_class_name": name})
        again = FramePackBackbone.load(given)
        assert all(torch.equal(x, again.state_dict()[n]) for n, x in model.state_dict().items())
        assert "clean_x_embedder.proj_4x.weight" in again.state_dict()
    write_json(tmp_path / "config.json", config | {"_class_name": "HunyuanVideoTransformer3DModel"})
    with pytest.raises(UserError, match="not of HunyuanVideoFramepackTransformer3DModel"):
        FramePackBackbone.load(given)
    with pytest.raises(
        UserError, match="FramePackBackbone needs a FramePack spec, not TinyHunyuan"
    ):
        FramePackBackbone.load(specs.TinyHunyuan())


def test_the_spec_is_the_released_model() -> None:
    """Source: config.json of lllyasviel/FramePackI2V_HY."""
    released = specs.FramePack()
    assert (released.rotary, released.weights) == ("averaged", "lllyasviel/FramePackI2V_HY")
    more = {"has_image_proj": True, "has_clean_x_embedder": True, "image_proj_dim": 1152}
    assert released.config == specs.Hunyuan().config | more
    assert released.geometry == attrs.evolve(specs.Hunyuan().geometry, fps=30.0)
    assert (released.guidance, released.shift) == (10.0, 7.0)
