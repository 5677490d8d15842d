"""Published backbones at their real sizes, on no device; and small ones of the same specs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from longtake.backbones.specs import DiTSpec
from longtake.backbones.texts.specs import Umt5
from longtake.backbones.wan import specs
from longtake.core.config import apply_sets
from longtake.core.contract.samples import sample_history
from longtake.core.interfaces.spec import BackboneSpec
from longtake.core.model import build_model, count_parameters, model_sizes
from longtake.core.registry import registry
from longtake.core.values.grid import Rate, Size3
from longtake.experiments import sizes as script
from longtake.plugins.compressors.specs import Conv

from ..small import small

README = Path(__file__).resolve().parents[2] / "backbones" / "README.md"
NAMES = ["wan21-1.3b", "wan21-14b", "wan22-14b", "wan22-5b"]
SMALL: dict[str, Any] = dict(
    heads=2, head_width=12, layers=2, ffn=16, text_encoder=Umt5(width=8), weights=None
)


def readme() -> list[str]:
    text = README.read_text(encoding="utf-8")
    found = re.search(f"{script.BEGIN}\n(.*?)\n{script.END}", text, flags=re.S)
    assert found, "the page of the backbones has no table of sizes"
    return found[1].splitlines()


def test_the_readme_s_table_has_a_line_for_each() -> None:
    lines = readme()
    assert lines[:2] == script.head()
    named = [re.findall(r"^\| `([^`]+)`", line)[0] for line in lines[2:]]
    assert named == list(script.published()) and set(NAMES) <= set(named)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(script.published()))
def test_the_readme_s_line_is_counted(name: str) -> None:
    line = script.row(name, script.published()[name])
    assert line in readme(), f"renew it by python -m longtake.experiments.sizes:\n{line}"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("wan21-1.3b", 1_418_996_800), ("wan22-5b", 4_999_787_712)],
)
def test_parameters_are_those_of_the_published_weights(name: str, parameters: int) -> None:
    """Counted by hand from the sizes in the original releases' configs."""
    found = model_sizes(script.published()[name])
    assert found.parameters == parameters == by_hand(script.published()[name])


def by_hand(spec: Any) -> int:
    """Give the parameters of a Wan by its formula, without its class."""
    d, ffn, channels, text = spec.heads * spec.head_width, spec.ffn, spec.codec.channels, 4096
    linear = lambda enter, leave: enter * leave + leave  # noqa: E731
    attention = 4 * linear(d, d) + 2 * d
    block = 2 * attention + linear(d, ffn) + linear(ffn, d) + 2 * d + 6 * d
    ends = linear(channels * 4, d) + linear(d, channels * 4) + 2 * d
    times = linear(256, d) + linear(d, d) + linear(d, 6 * d)
    return spec.layers * block + ends + times + linear(text, d) + linear(d, d)


def test_geometries_are_those_of_the_specs() -> None:
    for name, shapes in registry().geometries.items():
        spec = script.published().get(name)
        assert spec is not None and spec.geometry == shapes
        assert shapes.fps == (24.0 if name in ("hunyuan", "wan22-5b") else 16.0)
    five = registry().geometries["wan22-5b"]
    assert (five.channels, five.width, five.blocks) == (48, 3072, 30)
    assert five.vae_stride == Size3(time=4, height=16, width=16)


def test_sizes_are_those_of_a_real_model() -> None:
    spec = specs.Wan22Dense5B(**SMALL)
    conv = Conv(rate=Rate(height=2, width=2, time=2), channels=(4, 6), heads=2, head_width=4)
    found = model_sizes(spec, [conv])
    model = build_model(attrs.evolve(small(), backbone=spec, compressors=(conv,)))
    assert found.parameters == count_parameters(model.backbone) and found.geometry == spec.geometry
    assert found.encoders == (count_parameters(model.encoder),)


def test_both_experts_count_twice() -> None:
    one, both = (model_sizes(specs.Wan22Moe14B(**SMALL, expert=e)) for e in ("low", "both"))
    assert both.parameters == 2 * one.parameters


@pytest.mark.parametrize("name", NAMES)
def test_one_experiment_runs_on_every_wan(name: str) -> None:
    """By one value of its spec; the numbers after it only make the model small."""
    numbers = [f"backbone.{key}={value}" for key, value in SMALL.items() if isinstance(value, int)]
    experiment = apply_sets(
        small(),
        [f"backbone.type={name}", *numbers, "backbone.text_encoder.width=8",
         "backbone.weights=null"],
    )  # fmt: skip
    model = build_model(experiment, adapters=True)
    shapes = model.backbone.geometry
    needs = registry().load(experiment.compressors[0]).needs(experiment.compressors[0])
    history = sample_history(
        Size3(time=3, height=8, width=12), needs, 1, geometry=shapes, seed=0,
        dtype=torch.float32, start=0,
    )  # fmt: skip
    with torch.no_grad():
        out = velocity(model, history)
    assert out.shape == (1, shapes.channels, 2, 8, 12) and bool(out.isfinite().all())


def velocity(model: Any, history: Any) -> Tensor:
    context = model.backbone.context(model.backbone.blank_text(1, 4), model.encoder(history))
    x = torch.randn(1, model.backbone.geometry.channels, 2, 8, 12)
    out: Tensor = model.backbone.velocity(x, torch.tensor([0.5]), torch.tensor([[0, 2]]), context)
    return out


def test_memory_has_time_0_where_the_backbone_knows_time_by_token() -> None:
    found: dict[str, BackboneSpec] = {p.name: p.spec() for p in registry().of("backbone")}
    times = {n: s.memory_time for n, s in found.items() if n in NAMES and isinstance(s, DiTSpec)}
    assert times == dict.fromkeys(NAMES) | {"wan22-5b": 0.0}
