"""`--set`: paths into a spec, values as JSON or text, all faults at once."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from longtake.backbones.codecs.specs import Dct
from longtake.backbones.wan.specs import TinyWan
from longtake.core.config import SpecError, apply_sets
from longtake.core.experiment import Experiment
from longtake.core.values.grid import Rate
from longtake.plugins.compressors.specs import Conv
from longtake.plugins.maskers.specs import Noise
from longtake.plugins.metrics.specs import Psnr, Ssim
from longtake.plugins.retrievers.specs import Flow, MeanFrame

EXPERIMENT = Experiment(
    name="test",
    backbone=TinyWan(heads=2, codec=Dct(channels=16)),
    compressors=(Conv(),),
    masker=Noise(),
    retrievers=(Flow(), MeanFrame()),
    metrics=(Psnr(), Ssim()),
)

SHIPPED = TinyWan(weights="tiny-wan-4x4x2")  # as its recipe has it at the rate of EXPERIMENT


def changed(*sets: str) -> Experiment:
    return apply_sets(EXPERIMENT, sets)


@pytest.mark.parametrize(
    ("text", "read", "value"),
    [
        ("train.steps=10", lambda e: e.train.steps, 10),
        ("train.rate=1e-3", lambda e: e.train.rate, 1e-3),
        ("train.seconds=[1,2]", lambda e: e.train.seconds, (1.0, 2.0)),
        ("train.seconds.0=3", lambda e: e.train.seconds, (3.0, 20.0)),
        ("train.checkpointing=true", lambda e: e.train.checkpointing, True),
        ("compressors.0.rate=2x2x2", lambda e: str(e.compressors[0].rate), "2x2x2"),
        ("compressors[0].rate=2x2x2", lambda e: str(e.compressors[0].rate), "2x2x2"),
        ("compressor.rate=2x2x2", lambda e: str(e.compressors[0].rate), "2x2x2"),
        ('compressor.rate="2x2x2"', lambda e: str(e.compressors[0].rate), "2x2x2"),
        ("retrievers.1=flow", lambda e: e.retrievers, (Flow(), Flow())),
        ('metrics=["ssim"]', lambda e: e.metrics, (Ssim(),)),
        ('cache.rates=["2x2x8"]', lambda e: e.cache.rates, (Rate(height=2, width=2, time=8),)),
        ("backbone=tiny-wan", lambda e: e.backbone, SHIPPED),
        ('backbone={"type":"tiny-wan","heads":1}', lambda e: e.backbone, TinyWan(heads=1)),
        ("backbone.weights=12", lambda e: e.backbone.weights, "12"),
        ("backbone.weights=a=b", lambda e: e.backbone.weights, "a=b"),
        ("backbone.weights=null", lambda e: e.backbone.weights, None),
        ("backbone.memory_time=0.5", lambda e: e.backbone.memory_time, 0.5),
        ("name=true", lambda e: e.name, "true"),
    ],
)
def test_a_change_arrives(text: str, read: Any, value: Any) -> None:
    made = changed(text)
    assert read(made) == value
    assert made != EXPERIMENT or text == "backbone.weights=null"


def test_nothing_else_changes() -> None:
    assert changed() == EXPERIMENT
    assert changed("train.steps=7") == attrs.evolve(
        EXPERIMENT, train=attrs.evolve(EXPERIMENT.train, steps=7)
    )


def test_changes_are_made_in_order_and_judged_together() -> None:
    made = changed("backbone.attention=isolated", "backbone.memory_time=0")
    assert made.backbone == attrs.evolve(EXPERIMENT.backbone, attention="isolated", memory_time=0.0)
    made = changed(
        "backbone=tiny-wan", "backbone.codec=dct", "backbone.codec.channels=16", "backbone.layers=2"
    )
    assert made.backbone == attrs.evolve(SHIPPED, layers=2, codec=Dct(channels=16))
    made = changed('metrics=["psnr"]', "metric.ceiling=50", "metrics.0.ceiling=40")
    assert made.metrics == (Psnr(ceiling=40.0),)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train.stepz=3", "train.stepz: unknown field; did you mean steps?"),
        ("compresor.rate=1x1x1", "compresor: unknown field; did you mean compressor?"),
        ("metric.ceiling=3", "metric: there are 2 metrics; write metrics.0 and so on"),
        ("compressors[4].rate=1x1x1", "compressors[4]: no such member; members are 0 to 0"),
        ("compressors.rate=1x1x1", "compressors[rate]: no such member; members are 0 to 0"),
        ("cache.rates.0=2x2x2", "cache.rates[0]: no such member; the list is empty"),
        ("train.steps.x=3", "train.steps: is 1000, which has no field or member 'x'; set it whole"),
        ("train.steps=ten", "train.steps: must be a whole number, not 'ten'"),
        ("train.checkpointing=True", "train.checkpointing: must be true or false, not 'True'"),
        ("backbone.memory_time=shared", "backbone.memory_time: must be a number or null, not"),
        ("train.rate=NaN", "train.rate: must be a number, not 'NaN'"),
        ("metrics=psnr", "metrics: must be a list, not 'psnr'"),
        ("backbone=tiny-wam", "backbone.type: unknown backbone 'tiny-wam'; known: tiny-wan"),
        ("retrievers.1.steps=3", "retrievers[1].steps: unknown field; there are no fields"),
        ("train.steps", "train.steps: write PATH=VALUE, such as train.steps=10"),
        ("=3", "=3: write PATH=VALUE, such as train.steps=10"),
        ("train..steps=3", "train..steps=3: write PATH=VALUE, such as train.steps=10"),
        ("train[steps]=3", "train[steps]=3: write PATH=VALUE, such as train.steps=10"),
    ],
)
def test_what_cannot_be_set_is_said(text: str, line: str) -> None:
    with pytest.raises(SpecError) as caught:
        changed(text)
    assert len(caught.value.faults) == 1 and caught.value.faults[0].startswith(line)


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        changed("train.stepz=3", "backbone=nothing", "backbone.heads=3", "train.batch=0")
    places = [line.partition(": ")[0] for line in caught.value.faults]
    assert places == ["train.stepz", "backbone.type", "train.batch"]


@pytest.mark.parametrize("path", ["train.stepz=3", "train.steps", "metrics.9.x=1", "x={}"])
@pytest.mark.parametrize(
    "value", ["train.batch=0", "train=3", "compressor.rate=9x9x9", "metrics=[]", "masker=no"]
)
@pytest.mark.parametrize("first", [True, False])
def test_faults_of_paths_and_of_values_come_together(path: str, value: str, first: bool) -> None:
    with pytest.raises(SpecError) as caught:
        changed(*((path, value) if first else (value, path)))
    alone = []
    for text in (path, value):
        with pytest.raises(SpecError) as one:
            changed(text)
        alone.append(one.value.faults[0].partition(": ")[0])
    said = [line.partition(": ")[0] for line in caught.value.faults]
    assert len(said) == 2 and (set(said) == set(alone) or "train" in said)
