"""A tiny memory that begins in closed form gives back what it saw before any training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from attrs import evolve
from einops import rearrange
from torch.nn.functional import pad

from longtake.backbones.codecs.specs import Dct
from longtake.backbones.texts.specs import Bytes
from longtake.backbones.wan.published import TinyWanBackbone
from longtake.backbones.wan.specs import TinyWan
from longtake.core.cache.cache import cache
from longtake.core.data.store import Store
from longtake.core.data.windows import ClipWindow
from longtake.core.errors import UserError
from longtake.core.experiment import CacheSpec
from longtake.core.interfaces.spec import CompressorSpec
from longtake.core.train.checkpoint import load_run
from longtake.core.train.pretrain import pretrain
from longtake.core.values.draws import Draws
from longtake.core.values.grid import Rate, Size3
from longtake.core.values.memory import Memory, Part, token_places
from longtake.core.video.builtin_clip import write_builtin_clip
from longtake.experiments.closed_form import __main__ as closed_form
from longtake.experiments.closed_form.begin import begin, write
from longtake.experiments.closed_form.encoder import keep_components
from longtake.experiments.closed_form.fitting import TIMES, Fitting
from longtake.experiments.closed_form.heads import (
    Look,
    _of_targets,
    _what_heads_read,
    looks,
    places,
)
from longtake.experiments.continuations import TINY_WAN_2X2X2_FINETUNE
from longtake.experiments.tiny import (
    ENCODER,
    TINY_WAN_2X2X2,
    TINY_WAN_ONLY_LR,
    TINY_WAN_WITHOUT_LR,
)
from longtake.plugins.compressors.conv_layers import CausalConv, ConvShape
from longtake.plugins.compressors.specs import Conv, Keyframes, Patchifier, Pool, Window

EXPERIMENT = evolve(TINY_WAN_2X2X2, cache=CacheSpec(area=96 * 160, pixels=False, mirror=True))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("closed-form")
    (root / "videos").mkdir()
    write_builtin_clip(root / "videos" / "clip.mp4", 14.0, 8, 96, 160)
    rates = frozenset({Rate(height=2, width=2, time=2)})
    device = torch.device("cpu")
    cache(EXPERIMENT, root / "videos", root / "store", rates=rates, pixels=False, device=device)
    return Store.open(root / "store")


@pytest.fixture(scope="module")
def begun(store: Store) -> Fitting:
    return begin(EXPERIMENT, store, 6)


@pytest.mark.slow
def test_it_gives_back_most_of_what_it_saw(begun: Fitting) -> None:
    loss, zero = begun.mean_loss()
    assert loss < 0.15 * zero


@pytest.mark.slow
def test_a_run_is_written_that_loads_to_the_same_weights(
    begun: Fitting, store: Store, tmp_path: Path
) -> None:
    write(begun, EXPERIMENT, store, tmp_path / "run", {})
    loaded = load_run(tmp_path / "run")
    for mine, theirs in (
        (begun.model.backbone, loaded.backbone),
        (begun.model.encoder, loaded.encoder),
    ):
        wanted = theirs.state_dict()
        assert all(torch.equal(x, wanted[name]) for name, x in mine.state_dict().items())


@pytest.mark.parametrize("text", ["2x2x2", "4x4x2", "2x2x4", "1x1x1"])
def test_every_patch_of_a_cell_has_a_corner_of_its_own(text: str) -> None:
    rate = Rate.parse(text)
    found = places(rate)
    assert len({place.corner for place in found}) == rate.time * rate.height * rate.width
    # rows and columns: from a patch's centre to its cell's
    for place in found:
        _, row, column = place.indices
        assert place.corner[1] == (rate.height - 1) / 2 - row
        assert place.corner[2] == (rate.width - 1) / 2 - column


@pytest.mark.parametrize("latents", range(1, 12))
@pytest.mark.parametrize("text", ["2x2x1", "2x2x2", "2x2x4"])
def test_every_latent_finds_its_token_and_no_other(text: str, latents: int) -> None:
    """Those of a first token and of a block that has one latent so far, too."""
    rate, size = Rate.parse(text), Size3(time=latents, height=4, width=4)
    if (latents - 1) % rate.time > 1:
        pytest.skip("two or three of four stand where whole blocks of others do")
    one = Size3(time=1, height=2, width=2)
    positions, extents, _ = token_places(
        rate, size, one, rate.token_grid(size, one), start=torch.zeros(1),
        length=torch.tensor([latents]), skip=0,
    )  # fmt: skip
    first = positions[0, :, 0] - (extents[0, :, 0] - 1) / 2
    looked = torch.tensor(TIMES[rate.time], dtype=torch.float64)
    for latent in range(latents):
        apart = positions[0, :, 0, None] - (latent + looked)
        found, _ = torch.where(apart.abs() <= 0.25)
        own = (first <= latent) & (latent <= first + extents[0, :, 0] - 1)
        assert len(found) and own[found].all()
        assert (apart.abs() <= 0.25).sum() == own.sum(), "one head tells it, not two"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("two", "a memory of one compressor begins in closed form, not of 2"),
        ("places", "32 heads in all are too few for the 64 patches of 8x8x1"),
        ("rate", "1x1x8 tokens: a time rate of 8 has no closed form, 1, 2, 4 do"),
        ("zeros", "not so here: time_padding"),
        ("crop", "crop .6, 8. holds no whole tokens of 2x2x2, which are 4 by 4 latents"),
        ("second stage", "is Stage II"),
        ("store", "no LR latents at 4x4x2"),
        ("shared", "memory_time 0"),
    ],
)
def test_what_has_no_closed_form_is_refused(name: str, said: str, store: Store) -> None:
    wrong = {
        "two": evolve(EXPERIMENT, compressors=(ENCODER, Window())),
        "places": evolve(EXPERIMENT, compressors=(Conv(rate=Rate.parse("8x8x1")),)),
        "rate": evolve(EXPERIMENT, compressors=(Conv(rate=Rate.parse("1x1x8")),)),
        "zeros": evolve(EXPERIMENT, compressors=(evolve(ENCODER, time_padding="zeros"),)),
        "crop": evolve(EXPERIMENT, train=evolve(EXPERIMENT.train, crop=(6, 8))),
        "second stage": TINY_WAN_2X2X2_FINETUNE,
        "store": evolve(EXPERIMENT, compressors=(Conv(rate=Rate.parse("4x4x2")),)),
        "shared": evolve(EXPERIMENT, backbone=evolve(EXPERIMENT.backbone, memory_time=None)),
    }[name]
    with pytest.raises(UserError, match=said):
        Fitting.of(wrong, store, 1)


def test_bad_words_are_one_line(
    capsys: pytest.CaptureFixture[str], store: Store, tmp_path: Path
) -> None:
    words = ["tiny-wan-2x2x2", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert closed_form.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()
    words = ["tiny-wan-2x2x2", "--data", str(store.root), "--out", str(tmp_path / "out")]
    assert closed_form.main([*words, "--batches", "0"]) == 2
    assert capsys.readouterr().err == "closed_form: --batches 0: 1 or more\n"
    assert not (tmp_path / "out").exists()
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    assert closed_form.main([*words[:-1], str(store.root)]) == 2
    assert "is a folder with files in it" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "compressor",
    [
        TINY_WAN_WITHOUT_LR.compressors[0],
        TINY_WAN_ONLY_LR.compressors[0],
        Patchifier(rate=Rate.parse("2x2x2")),
        Pool(rate=Rate.parse("2x2x1")),
        Keyframes(every=2),
    ],
    ids=["without-lr", "only-lr", "patchifier", "pool", "keyframes"],
)
def test_every_memory_begins_better_than_a_guess_of_zero(
    compressor: CompressorSpec, store: Store
) -> None:
    loss, zero = begin(evolve(EXPERIMENT, compressors=(compressor,)), store, 3).mean_loss()
    assert loss < 0.5 * zero


@torch.no_grad()
@pytest.mark.parametrize("name", ["2x2x1", "2x2x4", "keyframes"])
def test_tokens_stand_for_the_patches_around_them(name: str, store: Store) -> None:
    keyframes = Keyframes(every=3)
    spec = keyframes if name == "keyframes" else Pool(rate=Rate.parse(name))
    fitting = Fitting.of(evolve(EXPERIMENT, compressors=(spec,)), store, 1)
    # latents that are everywhere their own latent frame's number, so that tokens' frames are known
    history = next(fitting.windows()).history
    length = int(history.length.min())
    numbers = torch.arange(history.latents.shape[2]).float()
    latents = numbers[:, None, None].expand_as(history.latents)
    history = evolve(
        history, latents=latents.clone(), length=torch.full_like(history.length, length)
    )
    _, patches = fitting.cells(history)
    found = patches.reshape(len(patches), fitting.rate.time, -1)
    assert bool((found == found[..., :1]).all())
    step = fitting.rate.time
    if spec is keyframes:
        kept = range(0, length, 3)[-keyframes.newest :]
        wanted = {(float(n),) for n in kept}
    else:
        wanted = {
            tuple(float(max(0, n - step + 1 + k)) for k in range(step))
            for n in range(0, length, step)
        }
    assert {tuple(x.tolist()) for x in found[..., 0]} == wanted


@torch.no_grad()
def test_the_last_conv_keeps_what_others_beside_it_do_not_tell() -> None:
    shape = ConvShape(inputs=6, outputs=3, kernel=(3, 3, 3), stride=(1, 1, 1))
    x = torch.randn(1, 6, 6, 8, 8) * torch.tensor([9.0, 8, 7, 1, 1, 1])[None, :, None, None, None]
    cells = rearrange(x, "b c t h w -> (b t h w) c")
    for told, kept in ((None, slice(0, 3)), ([cells[:, :3]], slice(3, 6))):
        conv = CausalConv(shape, norm=False, replicate=True)
        keep_components(conv, [x], torch.ones(6), told)
        read = conv.weight[:, :, -1, 1, 1].square()
        assert float(read[:, kept].sum() / read.sum()) > 0.99


@torch.no_grad()
def test_components_of_nothing_stay_finite() -> None:
    shape = ConvShape(inputs=4, outputs=16, kernel=(3, 3, 3), stride=(1, 2, 2))
    conv = CausalConv(shape, norm=False, replicate=True)
    one = torch.randn(1, 1, 6, 8, 8).expand(-1, 4, -1, -1, -1)  # three channels add nothing
    importance = keep_components(conv, [one], torch.ones(4))
    out = conv(one, None)
    assert bool(importance.isfinite().all()) and float(out.abs().max()) < 100


@pytest.mark.slow
def test_lora_begins_on_the_base_and_the_encoder_carries_over(
    begun: Fitting, store: Store, tmp_path: Path
) -> None:
    write(begun, EXPERIMENT, store, tmp_path / "base", {})
    checkpoint = tmp_path / "base" / "checkpoint-0"
    train = evolve(EXPERIMENT.train, steps=1, batch=2, warmup=0, rate=1e-9, crop=(8, 16))
    backbone = evolve(begun.model.experiment.backbone, weights=str(checkpoint / "backbone"))
    experiment = evolve(EXPERIMENT, backbone=backbone, train=evolve(train, gain_every=9))
    pretrain(experiment, store.root, tmp_path / "run", start=checkpoint)
    first, second = load_run(tmp_path / "base"), load_run(tmp_path / "run")
    mine, theirs = (dict(model.encoder.named_parameters()) for model in (first, second))
    assert all(torch.allclose(x, theirs[name], atol=1e-6) for name, x in mine.items())
    assert second.backbone.adapters()
    with pytest.raises(UserError, match="without LoRA"):
        pretrain(EXPERIMENT, store.root, tmp_path / "other", start=checkpoint)


@pytest.mark.parametrize(
    ("text", "back"), [("2x2x2", 8), ("4x4x2", 0), ("2x2x1", 8), ("2x2x4", 0), ("1x1x1", 2)]
)
def test_every_head_has_something_to_look_at(text: str, back: int) -> None:
    rate = Rate.parse(text)
    dealt = looks(rate, 32)
    assert len(dealt) == 32 and sum(look.newest for look in dealt) == back
    groups: dict[object, list[Look]] = {}
    for look in dealt:
        groups.setdefault((look.newest, look.soon, look.place.indices), []).append(look)
    for found in groups.values():  # parts of a patch, each once
        assert [look.part for look in found] == list(range(len(found)))
        assert {look.of for look in found} == {len(found)}
    assert sum(look.soon for look in dealt) == back // 2
    assert {look.place.indices for look in dealt if not look.newest} == {
        place.indices for place in places(rate)
    }


def test_what_follows_a_cut_is_left_out_of_the_fit(store: Store) -> None:
    record = evolve(store.records[0], cuts=(4.0,))  # at 8 fps frame 32, the last one of latent 8

    def plan(number: int) -> list[ClipWindow]:
        starts = {0: (0, 2, 6, 8)}[number]
        return [ClipWindow(record=record, start=start, length=12) for start in starts]

    batches = SimpleNamespace(store=store, windows=SimpleNamespace(plan=plan))
    none = cast(Any, None)
    fitting = Fitting(model=none, stage=none, batches=cast(Any, batches), count=1)
    assert fitting.uncut(0, 2, 6) == [0, 1, 3]  # latents 2 to 5, 4 to 7, 8 to 11, 10 to 13
    assert fitting.uncut(0, 1, 12) == [3]


@pytest.mark.slow
@torch.no_grad()
def test_it_goes_on_better_with_its_past_than_with_none(begun: Fitting) -> None:
    stage, losses = begun.stage, []
    for number in range(4):
        batch = begun.batches[number]
        draws = Draws.of(0, number, batch.places, "on")
        shortest = int(batch.history.length.min())
        past = 1 + (shortest - min(8, shortest // 2) - 1) // 2 * 2
        asked = evolve(batch, past=past).continuation()
        drawn, text = stage.draw_time(asked.target, draws), stage.drop_text(batch.text, draws)
        for memory in (stage.encoder(asked.history), Memory()):
            loss = stage.velocity_loss(asked.target, asked.frames, text, memory, drawn)
            losses.append(float(loss.mean()))
    assert sum(losses[::2]) < 0.8 * sum(losses[1::2])


def tokens_before(count: int, padding: int) -> Memory:
    """Return memory of two samples, `count` random tokens each and some of padding behind."""
    random = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, count, 24, generator=random)
    places = torch.rand(2, count, 3, generator=random, dtype=torch.float64)
    tokens, places = (pad(x, (0, 0, 0, padding)) for x in (tokens, places))
    part = Part(
        name="test",
        tokens=tokens,
        positions=places,
        extents=torch.ones_like(places),
        valid=torch.arange(count + padding).expand(2, -1) < count,
    )
    return Memory(parts=(part,))


@pytest.mark.parametrize(
    ("attention", "memory_time"), [("full", 0.0), ("full", None), ("isolated", 0.0)]
)
@torch.no_grad()
def test_what_targets_read_is_told_from_memory_of_as_many_rows(
    attention: str, memory_time: float | None
) -> None:
    spec = TinyWan(
        heads=2, head_width=12, layers=3, ffn=32, begin="diffusers", attention=attention,
        memory_time=memory_time, codec=Dct(channels=16), text_encoder=Bytes(width=12, length=4),
    )  # fmt: skip
    backbone = TinyWanBackbone.load(spec, seed=0)
    random = torch.Generator().manual_seed(2)
    noisy = torch.randn(2, 16, 2, 4, 6, generator=random)  # 12 patches a sample
    frames, text = torch.arange(5, 7).expand(2, -1), backbone.blank_text(2, 4)

    def reads(padding: int) -> list[torch.Tensor]:
        memory = tokens_before(12, padding)
        with _what_heads_read(backbone, 5) as found:
            backbone.velocity(noisy, torch.ones(2), frames, backbone.context(text, memory))
        return [_of_targets(x, 24) for x in found]

    alike, longer = reads(0), reads(3)
    assert [tuple(x.shape) for x in alike] == [(24, 10)] * 3
    for one, other in zip(alike, longer, strict=True):  # padding is read by nobody
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with _what_heads_read(backbone, 5) as found:
        backbone.remember(tokens_before(12, 0)) if attention != "full" else None
    assert found == [[], [], []], "memory alone asks for nothing"
