"""`bench generate`: a segment of a take that grows, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longtake.core.bench_generate import full_from, growth

from ..program import run
from .kit import experiment


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["full", "isolated-causal"])
def test_bytes_are_flat_once_memory_is_full(tmp_path: Path, attention: str) -> None:
    """On a small form of the bench: what stands in bytes needs no repetition."""
    from attrs import evolve

    from longtake.core.bench_generate import bench_generate, lines, save_chart

    spec = experiment()
    if attention != "full":
        backbone = evolve(spec.backbone, attention=attention, memory_time=0.0, cache_block=2)
        spec = evolve(spec, backbone=backbone)
    found = bench_generate(spec, segments=8, steps=2, budget=3, latents=2)
    rows = found["rows"]
    full = found["full_from"]
    assert [row["tokens"] for row in rows] == sorted(row["tokens"] for row in rows)
    assert 3 <= full <= 6 and rows[0]["tokens"] == 0 < rows[1]["tokens"] < rows[-1]["tokens"]
    for name in ("read", "held", "state"):
        assert len({row[name] for row in rows[full:]}) == 1, name
        assert found["growth"][name] == 1.0
    assert all(row["update"] > 0 and row["step"] > 0 for row in rows[1:])
    assert found["at"]["8"]["tokens"] == rows[-1]["tokens"] and "1" in found["at"]
    text = "\n".join(lines(found))
    assert "memory update" in text and f"full from segment {full}" in text
    picture = save_chart(found, tmp_path / "chart.svg")
    assert "<svg" in picture.read_text(encoding="utf-8")
    json.dumps(found)


def test_growth_is_told_from_rows() -> None:
    """A step may grow up to the budget; an update that grows with the take is seen."""
    row = {"segment": 1.0, "follow": 1.0, "held": 1, "state": 1, "files": 1}
    rows = [
        row | {"tokens": min(n, 4), "step": 1.0 + min(n, 4), "read": min(n, 4), "update": 1.0 + n}
        for n in range(16)
    ]
    assert full_from(rows) == 5
    told = growth(rows)
    assert told["step"] == told["read"] == told["follow"] == 1.0
    assert told["update"] == pytest.approx(14.5 / 6.5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--segments", "2"), "--segments 2: 3 or more"),
        (("--budget", "0"), "--budget 0: 1 or more"),
        (("--data", "store"), "--data goes with `longtake bench EXPERIMENT`"),
        (("--picture", "{place}/chart.gif"), "a picture ends in .svg, .png"),
        (("tiny-plain",), "tiny-plain has no memory"),
        (("nothing",), "nothing"),
    ],
)
def test_what_it_refuses(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    code, _, err = run("bench", "generate", *(w.format(place=tmp_path) for w in words))
    assert (code, err.count("\n")) == (2, 1) and told in err


def test_its_options_are_its_own() -> None:
    code, _, err = run("bench", "tiny-wan-2x2x2", "--segments", "9")
    assert code == 2 and "--segments goes with `longtake bench generate`" in err
    code, _, err = run("bench", "tiny-wan-2x2x2", "tiny-wan-4x4x2")
    assert code == 2 and "one experiment" in err
