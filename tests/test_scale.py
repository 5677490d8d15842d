"""Scale: what may not grow with a history or a store does not; the script in its tiny form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from longtake.core.data.store import Record, Store
from longtake.core.data.windows import WindowSampler
from longtake.core.kernel_bench.setups import encoder_setups
from longtake.core.model import compressor_needs
from longtake.core.tools.timing import count_flop
from longtake.experiments import scale
from longtake.experiments.tiny import TINY_WAN_2X2X2

CPU = torch.device("cpu")


@torch.no_grad()
def test_a_second_costs_the_same_operations_and_bytes_behind_any_history() -> None:
    setup = encoder_setups(tiny=True)[1]
    encoder, history = (
        setup.encoder(CPU, torch.float32).eval(),
        setup.history(20.0, CPU, torch.float32),
    )
    one, costs, state = setup.second, set[tuple[int, ...]](), None
    for begin in range(0, history.size.time - one, one):
        chunk, before = history.chunk(begin, begin + one), state
        flop = count_flop(lambda chunk=chunk, before=before: encoder.step(before, chunk))
        state, memory = encoder.step(before, chunk)
        if begin >= 4 * one:  # the window of attention is full
            costs.add((flop, sum(x.nbytes for x in state.values()), memory.length))
    assert len(costs) == 1 and min(costs.pop()) > 0


class CountedLengths(Record):
    """A record that counts how often its length is read."""

    reads = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "latents":
            CountedLengths.reads += 1
        return super().__getattribute__(name)


def test_the_plan_of_a_step_reads_no_clip_but_its_own() -> None:
    experiment = TINY_WAN_2X2X2
    geometry, needs = experiment.backbone.geometry, compressor_needs(experiment)
    records = [attrs.asdict(scale._record(n, 40), recurse=False) for n in range(500)]
    store = Store(
        Path("none"), {"fps": geometry.fps, "stride": 4}, [CountedLengths(**r) for r in records]
    )
    sampler = WindowSampler.of(store, geometry, experiment.train, needs)
    CountedLengths.reads = 0
    windows = sampler.plan(0)
    assert len(windows) == experiment.train.batch
    assert 0 < CountedLengths.reads <= 4 * experiment.train.batch


@pytest.mark.slow
def test_the_script_writes_figures_and_a_picture(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "scale.json"
    assert scale.main(["--tiny", "--out", str(out)]) == 0
    told, found = capsys.readouterr().out, json.loads(out.read_text(encoding="utf-8"))
    rows = list(figures(found))
    assert len(rows) == len(told.splitlines()) == 6
    assert [row["clips"] for row in found["bookkeeping"]] == list(scale.TINY.stores)
    assert len({row["state_bytes"] for row in found["appends"]}) == 1
    assert out.with_suffix(".svg").read_text(encoding="utf-8").startswith("<?xml")


def figures(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name in ("appends", "bookkeeping", "plans"):
        yield from found[name]


def test_bad_output_is_said_before_the_work(tmp_path: Path, capsys: Any) -> None:
    assert scale.main(["--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
