"""`longtake probe`: what a memory holds, asked without the generator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from . import options as o

if TYPE_CHECKING:
    from ..experiment import Experiment
    from ..interfaces.spec import RetrieverSpec


KIND = "probe"  # the plugin's name


def probe(
    run: o.RunArg,
    data: o.Data,
    out: Annotated[Path | None, o.out("the head's file; default RUN/probe.safetensors")] = None,
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Fit a small head on the frozen memory of a run: how much is in there, without the DiT.

    `--set` changes the probe, such as layers=2 or steps=1000. Then measure with it.

    Example: longtake probe runs/first --data stores/clips
    """
    from .. import config as edge
    from ..data.store import Store
    from ..tools.device import pick_device
    from ..tools.progress import progress_bar
    from ..train.checkpoint import load_run
    from ..train.probe import fit_probe, write_probe
    from .options import emit, find_run

    place = find_run(run)
    store = Store.open(data)
    model = load_run(place).to(pick_device())
    spec = edge.apply_sets(probe_spec(model.experiment), sets or [])
    with progress_bar("probe") as report:
        fitted = fit_probe(model, store, spec, progress=report)
    target = write_probe(out or _default(run, place), fitted)
    change = named_by(model.experiment, spec, target)
    summary = {
        "file": str(target),
        "loss": fitted.loss,
        "spread": fitted.spread,
        "explained": fitted.explained,
        "set": change,
    }
    lines = [
        f"{target}: loss {fitted.loss:.4f} of {fitted.spread:.4f}, so "
        f"{100 * fitted.explained:.0f} % explained of the latents it was fitted on",
        f"measure with it: longtake measure {run} --data STORE --set '{change}'",
    ]
    emit(summary, lines, as_json=as_json)


def probe_spec(experiment: Experiment) -> RetrieverSpec:
    """Return the experiment's own probe, or the one that ships with its defaults."""
    from .. import config as edge
    from ..interfaces.spec import RetrieverSpec
    from ..registry import registry

    for spec in experiment.retrievers:
        if registry().find(spec).name == KIND:
            return spec
    return edge.from_json(KIND, RetrieverSpec)


def named_by(experiment: Experiment, spec: RetrieverSpec, path: Path) -> str:
    """Return the `--set` under which an experiment measures with a fitted probe."""
    from .. import config as edge

    made: Any = edge.to_json(spec) | {"weights": str(path)}
    present = edge.to_json(experiment)["retrievers"]
    for index, found in enumerate(present):
        if found | {"weights": str(path)} == made:
            return f"retrievers.{index}.weights={path}"
    others = [found for found in present if found["type"] != KIND]
    return f"retrievers={json.dumps([*others, made], ensure_ascii=False)}"


def _default(run: str, place: Path) -> Path:
    from ..registry import registry

    shipped = place in registry().weights.values()
    return Path(f"probe-{run}.safetensors") if shipped else place / "probe.safetensors"
