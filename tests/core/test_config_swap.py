"""One value changed puts an experiment on another backbone (design: the same on every one)."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from longtake.backbones.codecs.specs import Dct
from longtake.backbones.wan.specs import TinyWan, Wan22Dense5B, Wan22Moe14B
from longtake.core.config import SpecError, apply_sets, dumps, loads
from longtake.core.experiment import Experiment
from longtake.core.registry import registry
from longtake.plugins.compressors.specs import Conv
from longtake.plugins.maskers.specs import Noise
from longtake.plugins.metrics.specs import Psnr, Ssim
from longtake.plugins.retrievers.specs import Flow

EXPERIMENT = Experiment(
    name="test",
    backbone=TinyWan(heads=2, attention="isolated", memory_time=0.5, codec=Dct(channels=16)),
    compressors=(Conv(),),
    masker=Noise(),
    retrievers=(Flow(),),
    metrics=(Psnr(),),
)


@pytest.mark.parametrize("path", ["backbone", "backbone.type"])
def test_another_type_is_its_default_spec(path: str) -> None:
    made = apply_sets(EXPERIMENT, [f"{path}=wan22-14b"])
    assert made == attrs.evolve(EXPERIMENT, backbone=Wan22Moe14B())
    assert loads(dumps(made), Experiment) == made


@pytest.mark.parametrize("path", ["backbone", "backbone.type"])
def test_only_what_is_named_again_is_kept(path: str) -> None:
    made = apply_sets(
        EXPERIMENT,
        [f"{path}=wan22-5b", "backbone.attention=isolated", "backbone.codec.tile=256"],
    )
    assert made.backbone == Wan22Dense5B(
        attention="isolated", codec=attrs.evolve(Wan22Dense5B().codec, tile=256)
    )


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
        ("backbone.codec.type=bytes", "backbone.codec.type: unknown codec 'bytes'; known: dct"),
    ],
)
def test_an_unknown_type_is_said(text: str, line: str) -> None:
    with pytest.raises(SpecError) as caught:
        apply_sets(EXPERIMENT, [text])
    assert len(caught.value.faults) == 1 and caught.value.faults[0].startswith(line)


def names() -> list[str]:
    return [plugin.name for plugin in registry().of("backbone")]


@pytest.mark.parametrize("name", names())
def test_every_backbone_takes_its_place(name: str) -> None:
    made = apply_sets(EXPERIMENT, [f"backbone.type={name}"])
    spec: Any = made.backbone
    plugin = registry().find(spec)
    assert plugin.name == name
    assert spec.geometry.width > 0 and spec.shift > 0
    assert attrs.evolve(made, backbone=EXPERIMENT.backbone) == EXPERIMENT
