"""One value changed puts an experiment on another backbone (design: the same on every one)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from longtake.backbones.codecs.specs import Dct
from longtake.backbones.wan.specs import TinyWan, Wan22Dense5B
from longtake.core.config import (
    SpecError,
    apply_sets,
    candidates,
    change,
    dumps,
    from_recipe,
    load_experiment,
    loads,
    on_backbone,
    origins,
    to_json,
)
from longtake.core.config.recipe import (
    check_recipe,
    leaves,
    recipe_of,
    recommended,
    second_stage,
    weights_notice,
)
from longtake.core.errors import UserError
from longtake.core.experiment import CacheSpec, Experiment, TrainSpec
from longtake.core.hooks import Plugin
from longtake.core.interfaces.spec import BackboneSpec
from longtake.core.registry import registry
from longtake.core.show import show
from longtake.core.values.grid import Rate
from longtake.plugins.compressors.specs import Conv, DualEncoder, Transformer
from longtake.plugins.maskers.specs import Drop, Noise
from longtake.plugins.metrics.specs import MsSsim, Psnr, Ssim
from longtake.plugins.retrievers.specs import Flow, MeanFrame, Probe

EXPERIMENT = Experiment(
    name="test",
    backbone=TinyWan(heads=2, attention="isolated", memory_time=0.5, codec=Dct(channels=16)),
    compressors=(Conv(),),
    masker=Noise(),
    retrievers=(Flow(),),
    metrics=(Psnr(),),
)


def names() -> list[str]:
    return [plugin.name for plugin in registry().of("backbone")]


PAPER = ("wan21-1.3b", "wan21-14b", "wan22-5b", "wan22-14b", "hunyuan")
FAMILIES = {rate: PAPER for rate in ("2x2x1", "2x2x4")} | {
    rate: ("tiny-wan", *PAPER) for rate in ("2x2x2", "4x4x2")
}
TRAIN = load_experiment("hunyuan-2x2x2")[1].train
VARIANTS = ("-crops", "-only-lr", "-without-lr")


def shipped(name: str) -> Experiment:
    return load_experiment(name)[1]


@pytest.mark.parametrize(("rate", "old"), [(r, name) for r in FAMILIES for name in FAMILIES[r]])
def test_one_value_makes_the_experiment_that_ships_for_the_other(rate: str, old: str) -> None:
    before = shipped(f"{old}-{rate}")
    for new in FAMILIES[rate]:
        made = apply_sets(before, [f"backbone={new}"])
        assert made == shipped(f"{new}-{rate}") == on_backbone(before, new), new
        assert on_backbone(made, before.backbone) == before, new


@pytest.mark.parametrize("path", ["backbone", "backbone.type"])
def test_it_is_its_golden_file(path: str) -> None:
    made = apply_sets(shipped("tiny-wan-2x2x2"), [f"{path}=wan22-5b"])
    golden = Path(__file__).parents[1] / "golden" / "wan22-5b-2x2x2.json"
    assert dumps(made) == golden.read_text(encoding="utf-8")
    assert loads(dumps(made), Experiment) == made


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", names())
def test_there_and_back_is_equal(name: str, variant: str) -> None:
    before = shipped(f"tiny-wan-2x2x2{variant}")
    there = on_backbone(before, name)
    assert registry().find(there.backbone).name == name
    assert there.name == f"{name}-2x2x2{variant}"
    assert on_backbone(there, before.backbone) == before


@pytest.mark.parametrize("name", names())
def test_there_and_back_is_equal_without_a_memory(name: str) -> None:
    before = shipped("tiny-plain")
    there = on_backbone(before, name)
    assert on_backbone(there, before.backbone) == before
    assert there.masker.clean == before.masker.clean, "nothing reads it"
    counts = there.masker.counts  # type: ignore[attr-defined]
    assert counts == recipe_of(there.backbone)["masker.counts"], "its targets follow"


def test_it_all_follows_also_what_nobody_set() -> None:
    made = apply_sets(EXPERIMENT, ["backbone=wan22-5b"])
    assert made.backbone == Wan22Dense5B() and made.name == "test"
    assert made.cache == attrs.evolve(CacheSpec(), area=480 * 832, min_seconds=20.0, pixels=False)
    assert isinstance(made.masker, Noise) and made.masker.clean == 0.0
    assert (made.train.batch, made.train.warmup, made.train.checkpointing) == (32, 500, True)
    assert made.retrievers == EXPERIMENT.retrievers and made.metrics == EXPERIMENT.metrics


@pytest.mark.parametrize("name", names())
def test_an_experiment_that_names_no_store_or_training_has_its_backbone_s(name: str) -> None:
    spec = recommended(candidates(BackboneSpec)[name])
    made = Experiment(
        name="test", backbone=spec, compressors=(Conv(),), masker=Noise(),
        retrievers=(Flow(),), metrics=(Psnr(),),
    )  # fmt: skip
    like = shipped("tiny-wan-2x2x2" if name.startswith("tiny") else "wan22-5b-2x2x2")
    assert (made.cache, made.train) == (like.cache, like.train)
    assert made.measure == attrs.evolve(like.measure, targets=())
    data = to_json(made)
    left_out = {key: value for key, value in data.items() if key not in ("cache", "train")}
    assert loads(json.dumps(left_out), Experiment) == made
    there = on_backbone(made, "hunyuan")
    assert (there.cache, there.train) == (shipped("hunyuan-2x2x2").cache, TRAIN)


def test_a_recipe_fills_in_what_is_not_set() -> None:
    own = attrs.evolve(EXPERIMENT, cache=CacheSpec(area=999), masker=Drop(fill="mean"))
    made = from_recipe(own)
    assert made.cache == attrs.evolve(CacheSpec(), area=999)
    assert made.masker == Drop(fill="mean", counts=(4,), clean=0.75)
    assert made.compressors == (
        Conv(channels=(48, 96, 192, 320), heads=5, head_width=64, rounding="whole"),
    )
    assert made.backbone == own.backbone and from_recipe(made) == made


def test_what_the_experiment_sets_stays_and_what_is_set_comes_after() -> None:
    before = shipped("tiny-wan-2x2x2")
    train = attrs.evolve(before.train, batch=6, memory_dropout=0.3)
    own = attrs.evolve(before, name="mine", train=train, cache=attrs.evolve(before.cache, area=999))
    wanted = shipped("wan22-5b-2x2x2")
    train = attrs.evolve(wanted.train, memory_dropout=0.3, pure=0.25)
    cache = attrs.evolve(wanted.cache, area=999)
    for sets in (
        ["train.pure=0.25", "backbone=wan22-5b"],
        ["backbone=wan22-5b", "train.pure=0.25"],
    ):
        made = apply_sets(own, sets)  # 6 is the default of batch: nobody set it
        assert made == attrs.evolve(wanted, name="mine", train=train, cache=cache)


def test_optimizer_and_rate_go_together() -> None:
    before = shipped("tiny-wan-2x2x2")
    own = attrs.evolve(before, train=attrs.evolve(before.train, rate=5e-3))
    train = on_backbone(own, "wan22-5b").train
    assert (train.optimizer, train.rate, train.warmup, train.decay) == ("adamw", 5e-3, 30, 0.5)
    train = apply_sets(before, ["train.rate=5e-3", "backbone=wan22-5b"]).train
    assert (train.optimizer, train.rate, train.warmup, train.decay) == ("adamw", 5e-3, 500, 0.0)


def test_lists_keep_the_experiment_s_own_members() -> None:
    before = shipped("tiny-wan-2x2x2")
    own = attrs.evolve(before, retrievers=(Probe(), *before.retrievers))
    there = on_backbone(own, "wan22-5b")
    assert there.retrievers == (*shipped("wan22-5b-2x2x2").retrievers, Probe())
    assert on_backbone(there, own.backbone).retrievers == (*before.retrievers, Probe())
    own = attrs.evolve(before, retrievers=(MeanFrame(), Flow(steps=3)), metrics=(MsSsim(scales=4),))
    there = on_backbone(own, "wan22-5b")
    assert there.retrievers == (Flow(steps=3),) and there.metrics == (MsSsim(),)
    own = attrs.evolve(before, metrics=(MsSsim(scales=2),), retrievers=(MeanFrame(),))
    there = on_backbone(own, "wan22-5b")
    assert there.metrics == own.metrics and there.retrievers == own.retrievers, "never empty"


def test_a_plugin_by_name_is_as_the_backbone_has_it() -> None:
    tiny, large = shipped("tiny-wan-2x2x2"), shipped("wan22-5b-2x2x2")
    for path in ("masker", "masker.type"):
        assert apply_sets(tiny, [f"{path}=drop"]).masker == Drop(counts=(4,), clean=0.75)
        assert apply_sets(large, [f"{path}=drop"]).masker == Drop(clean=0.0)
    assert apply_sets(tiny, ['masker={"type":"drop","clean":0.5}']).masker == Drop(counts=(4,))
    assert apply_sets(tiny, ["masker=drop", "masker.clean=0.5"]).masker == Drop(counts=(4,))
    made = apply_sets(tiny, ["compressor=transformer"]).compressors
    assert made == (Transformer(heads=5, head_width=64, ffn=640),)
    made = apply_sets(tiny, ["backbone=wan22-5b", "compressor=transformer"]).compressors
    assert made == (Transformer(),)
    made = apply_sets(tiny, ['compressors=["dual-encoder"]']).compressors
    encoder = Conv(channels=(48, 96, 192, 320), heads=5, head_width=64, rounding="whole")
    rates = Rate.parse("4x4x2"), Rate.parse("2x2x8")
    assert made == (DualEncoder(encoders=tuple(attrs.evolve(encoder, rate=r) for r in rates)),)
    made = apply_sets(tiny, ['metrics=["ms-ssim","psnr"]']).metrics
    assert made == (MsSsim(scales=4), Psnr())
    train = apply_sets(tiny, ['train={"steps":7}']).train
    assert train == attrs.evolve(TrainSpec(), **attrs_of(tiny.train, "lora") | {"steps": 7})


def attrs_of(train: TrainSpec, trains: str) -> dict[str, Any]:
    return {a.name: getattr(train, a.name) for a in attrs.fields(TrainSpec)} | {"trains": trains}


@pytest.mark.parametrize("path", ["backbone", "backbone.type"])
def test_only_what_is_named_again_is_kept(path: str) -> None:
    made = apply_sets(
        EXPERIMENT,
        ["backbone.attention=isolated", f"{path}=wan22-5b", "backbone.codec.tile=256"],
    )
    assert made.backbone == Wan22Dense5B(
        attention="isolated", codec=attrs.evolve(Wan22Dense5B().codec, tile=256)
    )


def test_it_is_said_what_followed() -> None:
    changed = change(shipped("tiny-wan-2x2x2"), ["backbone=wan22-5b"])
    assert changed.swap is not None
    assert changed.swap.line == "backbone wan22-5b: 32 values follow its recipe"
    rows = {path: (old, new) for path, old, new in changed.swap.follow}
    assert rows["train.weigh"] == (2.0, 0.0)
    assert rows["compressors[0].heads"] == (5, 8)
    swap = change(EXPERIMENT, ["backbone=wan22-5b", "train.steps=3"]).swap
    assert swap is not None and [path for path, *_ in swap.kept] == []
    dropped = "backbone.attention isolated, backbone.heads 2, backbone.memory_time 0.5"
    assert f"no longer set: {dropped}, backbone.codec dct" in swap.line
    own = attrs.evolve(EXPERIMENT, cache=CacheSpec(area=999))
    swap = change(own, ["backbone=wan22-5b"]).swap
    assert swap is not None and swap.kept == (("cache.area", 999, 480 * 832),)
    assert "; 1 value that the experiment sets itself stays" in swap.line
    assert change(own, ["backbone=tiny-wan"]).swap is None


def test_a_faulty_value_is_said_beside_the_swap() -> None:
    with pytest.raises(SpecError) as caught:
        apply_sets(shipped("tiny-wan-2x2x2"), ["backbone=wan22-5b", "train.accumulate=3"])
    assert "batch 32 cannot be dealt into accumulate 3" in str(caught.value)
    made = apply_sets(
        shipped("tiny-wan-2x2x2"), ["train.accumulate=3", "backbone=wan22-5b", "train.batch=33"]
    )
    assert (made.train.batch, made.train.accumulate) == (33, 3)


def test_the_last_backbone_counts() -> None:
    made = apply_sets(shipped("tiny-wan-2x2x2"), ["backbone=wan22-5b", "backbone=hunyuan"])
    assert made == shipped("hunyuan-2x2x2")
    made = apply_sets(shipped("tiny-wan-2x2x2"), ["backbone=wan22-5b", "backbone.type=tiny-wan"])
    assert made == shipped("tiny-wan-2x2x2")


def test_a_recipe_with_a_wrong_key_is_said() -> None:
    @attrs.frozen(kw_only=True)
    class Odd(TinyWan):
        recipe: ClassVar[Mapping[str, Any]] = {"train.ratee": 1.0}

    with pytest.raises(UserError, match="recipe of Odd: train.ratee: unknown field; did you mean"):
        recipe_of(Odd)


WRONG_RECIPES: list[tuple[dict[str, Any], str]] = [
    ({"encoder.widht": 3}, r"encoder.widht: unknown key; did you mean encoder.widths\?"),
    ({"trian.rate": 3}, r"trian.rate: unknown key; there are (\S+, ){4}\S+ and \d+ more$"),
    ({"train.rate": "fast"}, "train: rate: must be a number, not 'fast'"),
    ({"train.adapter.alpha": -1.0}, "train: adapter.alpha: must be >"),
    ({"train.batch": 6, "train.accumulate": 4}, "train: .*batch 6 cannot be dealt"),
    ({"cache.area": 0}, "cache: area: must be >= 64, not 0"),
    ({"encoder.heads": 0}, "encoder.heads: heads: must be >= 1, not 0"),
    ({"masker.counts": 4}, "masker.counts: counts: must be a list"),
    ({"retrievers": ({"type": "flo"},)}, "retrievers: .* unknown retriever 'flo'"),
    ({"retrievers": ({"steps": 2},)}, "retrievers: .*type: missing"),
    ({"measure.targets": ({"metric": "psnr"},)}, "measure.targets: .*low: missing"),
    ({"backbone.heads": -1}, "backbone: must be >= 1"),
    ({"backbone.weights": "tiny-wan-2x2x3"}, "backbone.weights: unknown weights 'tiny-wan-2x2x3'"),
    ({"backbone.codec.tile": 64}, "backbone.codec.tile: set backbone.codec whole"),
]


@pytest.mark.parametrize(("recipe", "line"), WRONG_RECIPES, ids=lambda x: str(x)[:24])
def test_a_wrong_recipe_is_found_before_anything_runs(recipe: dict[str, Any], line: str) -> None:
    whole = {**TinyWan.recipe, **recipe}
    own = attrs.frozen(kw_only=True)(type("Mine", (Wan22Dense5B,), {"recipe": whole}))
    with pytest.raises(UserError, match=f"the recipe of Mine: {line}"):
        check_recipe(own)


@pytest.mark.parametrize("name", names())
def test_the_recipes_that_ship_are_right(name: str) -> None:
    check_recipe(candidates(BackboneSpec)[name])


def test_a_stranger_without_a_recipe_has_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    @attrs.frozen(kw_only=True)
    class Strange(TinyWan):
        recipe: ClassVar[Mapping[str, Any]] = {}

    own = Plugin(name="strange", summary="a test's", spec=Strange, target="a:b")
    monkeypatch.setitem(registry().plugins, ("backbone", "strange"), own)
    before = shipped("tiny-wan-2x2x2")
    changed = change(before, ["backbone=strange"])
    assert changed.swap is not None
    assert changed.swap.line.startswith("backbone strange: it brings no recipe; 24 values changed")
    assert (changed.spec.train, changed.spec.masker) == (TrainSpec(), Noise())
    assert on_backbone(changed.spec, before.backbone) == before


@pytest.mark.parametrize("name", names())
def test_every_recipe_fits_the_fields(name: str) -> None:
    cls = candidates(BackboneSpec)[name]
    assert recommended(cls).recipe == cls.recipe
    made = on_backbone(shipped("tiny-wan-2x2x2"), name)
    found = {leaf.key for leaf in leaves(made)} | {"retrievers", "measure.targets", "encoder.ffn"}
    assert set(recipe_of(cls)) <= found, "no key of it is read by nothing"
    found |= {leaf.key for leaf in leaves(second_stage(made))}
    assert set(recipe_of(cls, finetunes=True)) <= found
    assert not any(key.startswith("finetune.") for key in recipe_of(cls))


def test_where_every_value_comes_from_is_told() -> None:
    sets = ["backbone=wan22-5b", "train.steps=9", 'masker={"type":"drop","fill":"mean"}']
    changed = change(shipped("tiny-wan-2x2x2"), sets)
    found = origins(changed.spec, changed.sets)
    assert found["train.steps"] == found["masker.fill"] == "--set"
    assert found["train.batch"] == found["masker.clean"] == found["name"] == "recipe"
    assert found["retrievers[0].steps"] == found["compressors[0].channels"] == "recipe"
    assert found["compressors[0].rate"] == found["measure.targets[0].low"] == "experiment"
    assert found["train.clip"] == found["backbone.heads"] == "default"
    tiny = origins(shipped("tiny-wan-2x2x2"))
    assert tiny["backbone.weights"] == tiny["measure.targets[5].low"] == "recipe"
    assert set(tiny.values()) == {"recipe", "default", "experiment"}


def test_its_own_type_changes_nothing() -> None:
    assert apply_sets(EXPERIMENT, ["backbone.type=tiny-wan"]) == EXPERIMENT
    made = apply_sets(EXPERIMENT, ["backbone.layers=3", "backbone.type=tiny-wan"])
    assert made.backbone == attrs.evolve(EXPERIMENT.backbone, layers=3)


def test_members_of_lists_change_their_type_too() -> None:
    made = apply_sets(EXPERIMENT, ["metric.type=ssim"])
    assert made.metrics == (Ssim(),)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "backbone.type=wan22-14c",
            "backbone.type: unknown backbone 'wan22-14c'; known: wan22-14b",
        ),
        ("backbone.type=3", "backbone.type: unknown backbone '3'; known: "),
        (
            "backbone.codec.type=bytes",
            "backbone.codec.type: unknown codec 'bytes'; known: tiny-ae, dct",
        ),
    ],
)
def test_an_unknown_type_is_said(text: str, line: str) -> None:
    with pytest.raises(SpecError) as caught:
        apply_sets(EXPERIMENT, [text])
    assert len(caught.value.faults) == 1 and caught.value.faults[0].startswith(line)


def test_another_rate_brings_the_weights_that_ship_for_it() -> None:
    before, wanted = shipped("tiny-wan-2x2x2"), shipped("tiny-wan-4x4x2")
    assert before.backbone.weights != wanted.backbone.weights
    assert apply_sets(before, ["compressor.rate=4x4x2"]).backbone == wanted.backbone
    assert apply_sets(before, ["compressor.rate=4x4x2"]).retrievers == wanted.retrievers
    mine = ["compressor.rate=4x4x2", 'retrievers=["flow","upsample"]']
    assert apply_sets(before, mine).retrievers == apply_sets(before, mine[1:]).retrievers
    large = apply_sets(shipped("wan22-5b-2x2x2"), ["compressor.rate=4x4x2"])
    assert large.retrievers == shipped("wan22-5b-4x4x2").retrievers
    made = apply_sets(before, ["compressor.rate=4x4x2", "backbone.weights=mine"])
    assert made.backbone.weights == "mine"
    own = attrs.evolve(before, backbone=attrs.evolve(before.backbone, weights="mine"))
    assert apply_sets(own, ["compressor.rate=4x4x2"]).backbone.weights == "mine"
    assert apply_sets(before, ["compressor.rate=2x2x4"]).backbone == before.backbone
    whole = 'backbone={"type":"tiny-wan","weights":"tiny-wan-2x2x2"}'
    made = apply_sets(before, [whole, "compressor.rate=4x4x2"])
    assert made.backbone.weights == "tiny-wan-2x2x2", "named, if in vain"


@pytest.mark.parametrize("turned", [False, True])
def test_another_backbone_and_another_rate_bring_the_weights_of_both(turned: bool) -> None:
    sets = ["backbone=tiny-wan", "compressor.rate=4x4x2"]
    made = apply_sets(shipped("wan22-5b-2x2x2"), sets[::-1] if turned else sets)
    assert made.backbone == shipped("tiny-wan-4x4x2").backbone


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("compressor=dual-encoder", "tiny-wan-4x4x2"),
        ('compressors=[{"type":"conv","rate":"4x4x2"},{"type":"pool"}]', "tiny-wan-4x4x2"),
        ('compressors=["window",{"type":"conv","rate":"4x4x2"}]', "tiny-wan-4x4x2"),
        ("compressor=window", "tiny-wan-2x2x2"),
        ("compressor.rate=2x2x1", "tiny-wan-2x2x2"),
    ],
)
def test_the_first_rate_chooses_the_weights_and_without_one_the_recipe(
    text: str, weights: str
) -> None:
    for before in ("tiny-wan-2x2x2", "tiny-wan-4x4x2", "wan22-5b-2x2x2"):
        for sets in ([text, "backbone=tiny-wan"], ["backbone=tiny-wan", text]):
            assert apply_sets(shipped(before), sets).backbone.weights == weights, before


BEGAN = "backbone.weights tiny-wan-{} began for a memory of rate {}, this has "


@pytest.mark.parametrize(
    ("sets", "own", "line"),
    [
        (["compressor=window"], "2x2x2", "no rate; null begins at random"),
        (["compressor=clip"], "2x2x2", "no rate; null begins at random"),
        (["compressor=keyframes"], "2x2x2", "1x1x1; null begins at random"),
        (["compressor.rate=2x2x1"], "2x2x2", "2x2x1; null begins at random"),
        (["compressor.rate=2x2x4"], "2x2x2", "2x2x4; null begins at random"),
        (["compressor=dual-encoder"], "4x4x2", "4x4x2 and 2x2x8; null begins at random"),
        (
            ["compressor.rate=4x4x2", "backbone.weights=tiny-wan-2x2x2"],
            "2x2x2",
            "4x4x2; tiny-wan-4x4x2 for 4x4x2; null begins at random",
        ),
    ],
)
def test_weights_that_began_for_another_memory_are_told_in_one_line(
    sets: list[str], own: str, line: str
) -> None:
    made = apply_sets(shipped("tiny-wan-2x2x2"), sets)
    assert weights_notice(made) == BEGAN.format(own, own) + line
    assert show("test", made)["weights"] == weights_notice(made)


@pytest.mark.parametrize(
    "sets",
    [
        [],
        ["compressor.rate=4x4x2"],
        ["compressor=window", "backbone.weights=null"],
        ["compressor=window", "backbone.weights=my/own"],
        ["compressor=window", "backbone=tiny-hunyuan"],
        ['compressors=[{"type":"conv"},"window"]'],
        ["compressors=[]"],
    ],
)
def test_there_is_no_line_where_weights_began_for_the_memory_or_for_none(sets: list[str]) -> None:
    made = apply_sets(shipped("tiny-wan-2x2x2"), sets)
    assert weights_notice(made) == "" and "weights" not in show("test", made)


def with_weights(by_rate: object) -> type[BackboneSpec]:
    fields = {"recipe": TinyWan.recipe, "rate_weights": by_rate}
    return attrs.frozen(kw_only=True)(type("Mine", (TinyWan,), fields))


@pytest.mark.parametrize(
    ("by_rate", "line"),
    [
        ({"4x4": "tiny-wan-4x4x2"}, "'4x4': a rate is written HxWxT, such as 4x4x2, not '4x4'"),
        ({"foo": "tiny-wan-4x4x2"}, "'foo': a rate is written HxWxT, such as 4x4x2, not 'foo'"),
        ({"3x3x2": "tiny-wan-4x4x2"}, "'3x3x2': .*3"),
        ({"4x4x2": None}, "'4x4x2': must name weights, not null"),
        ({"4x4x2": ""}, "'4x4x2': must name weights, not ''"),
    ],
)
def test_a_key_that_is_no_rate_is_one_line_wherever_the_recipe_is_read(
    by_rate: dict[str, Any], line: str
) -> None:
    for ask in (check_recipe, recipe_of, recommended):
        with pytest.raises(UserError, match=f"^the rate_weights of Mine: {line}") as caught:
            ask(with_weights(by_rate))
        assert "\n" not in str(caught.value)


def test_weights_of_a_rate_must_be_somewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = with_weights({"4x4x2": "tiny-wan-4x4x3"})
    line = (
        "^the rate_weights of Mine: '4x4x2': unknown weights 'tiny-wan-4x4x3'; known: "
        "tiny-wan-4x4x2, .*; or a folder$"
    )
    with pytest.raises(UserError, match=line):
        check_recipe(lost)
    plugin = Plugin(name="mine", summary="a test's", spec=lost, target="a:b")
    monkeypatch.setitem(registry().plugins, ("backbone", "mine"), plugin)
    with pytest.raises(UserError, match=line):
        change(shipped("tiny-wan-2x2x2"), ["backbone=mine"])
    for found in (str(tmp_path), "org/model", "tiny-wan-4x4x2"):
        check_recipe(with_weights({"4x4x2": found}))


def test_weights_by_rate_need_a_field_and_are_not_inherited_behind_another_recipe() -> None:
    @attrs.frozen(kw_only=True)
    class Bare(BackboneSpec):
        rate_weights: ClassVar[Mapping[str, str]] = {"4x4x2": "tiny-wan-4x4x2"}

    with pytest.raises(UserError, match="^the rate_weights of Bare: '4x4x2': unknown field"):
        recipe_of(Bare)

    @attrs.frozen(kw_only=True)
    class Other(TinyWan):
        recipe: ClassVar[Mapping[str, Any]] = {"backbone.weights": "mine"}

    for text in ("2x2x2", "4x4x2"):
        assert recommended(Other, Rate.parse(text)).weights == "mine"
