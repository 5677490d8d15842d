"""The loader's figure: batches of a store that it writes or is given, beside training steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.core import bench as bench_loader
from longtake.core.bench import bench, loader_line, time_loader
from longtake.core.data.store import Store
from longtake.core.errors import UserError
from longtake.core.values.grid import Size3

from ..small import make_store, small, small_finetune


def test_the_figure_is_of_this_experiments_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Path, int]] = []
    read = Store.window

    def window(self, record, start, length, *more):  # type: ignore[no-untyped-def]
        seen.append((self.root, length))
        return read(self, record, start, length, *more)

    monkeypatch.setattr(Store, "window", window)
    experiment = small(batch=3, trains="lora")
    found = time_loader(experiment, Size3(time=6, height=4, width=6))
    step = found["stage"]
    assert step["gflop"] > 0 and found["step_seconds"] > 0 and len(step["rounds"]) == found["steps"]
    for one in step["rounds"]:
        assert one["over_floor"] == pytest.approx(one["seconds"] / one["floor_seconds"])
    assert found["batch"] == 3 and len(seen) % 3 == 0
    assert all(length <= 5 for _, length in seen), "windows, not whole clips"
    assert found["ratio"] == pytest.approx(found["step_seconds"] / found["load_seconds"])
    assert not any(root.exists() for root, _ in seen), "the store written for it is gone"
    assert f"{found['ratio']:.1f}×" in loader_line(found)

    store = make_store(tmp_path, small())
    seen.clear()
    given = time_loader(experiment, Size3(time=6, height=4, width=6), store)
    assert {root for root, _ in seen} == {store} and str(store) in loader_line(given)


def test_clips_that_are_too_short_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_loader, "CLIPS", 1)
    with pytest.raises(UserError, match="shortest training window"):
        time_loader(small(seconds=(2.0, 2.0)), Size3(time=1, height=4, width=6))


def test_stage_two_is_refused() -> None:
    with pytest.raises(UserError, match="small-finetune is Stage II.*steps of Stage I"):
        bench(small_finetune())
