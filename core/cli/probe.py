"""`longtake probe`."""

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
    out: Annotated[
        Path | None, o.out_option("the head's file; default RUN/probe.safetensors")
    ] = None,
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Fit a small head on the frozen memory of a run: how much is in there, without the DiT.

    `--set` changes the probe, such as layers=2 or steps=1000. Then measure with it.

    Example: longtake probe runs/first --data stores/clips
    """
    from .. import config
    from ..data.store import Store
    from ..tools.device import pick_device
    from ..tools.progress import progress_bar
    from ..train.checkpoint import load_run
    from ..train.probe import check_target, fit_probe, write_probe

    folder = o.find_run(run)
    path = out or _default(run, folder)
    check_target(path)
    store = Store.open(data)
    model = load_run(folder).to(pick_device())
    spec = config.apply_sets(probe_spec(model.experiment), sets or [])
    with progress_bar("probe") as report:
        fitted = fit_probe(model, store, spec, progress=report)
    target = write_probe(path, fitted)
    change = set_of_probe(model.experiment, spec, target)
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
    o.print_result(summary, lines, as_json=as_json)


def probe_spec(experiment: Experiment) -> RetrieverSpec:
    """Return the experiment's own spec of a probe; where it has none, the default one."""
    from .. import config
    from ..interfaces.spec import RetrieverSpec
    from ..registry import registry

    for spec in experiment.retrievers:
        if registry().find(spec).name == KIND:
            return spec
    return config.from_json(KIND, RetrieverSpec)


def set_of_probe(experiment: Experiment, spec: RetrieverSpec, path: Path) -> str:
    """Return the change by which an experiment measures with a fitted probe, as for `--set`."""
    from .. import config

    fitted: Any = config.to_json(spec) | {"weights": str(path)}
    retrievers = config.to_json(experiment)["retrievers"]
    for index, retriever in enumerate(retrievers):
        if retriever | {"weights": str(path)} == fitted:
            return f"retrievers.{index}.weights={path}"
    others = [retriever for retriever in retrievers if retriever["type"] != KIND]
    return f"retrievers={json.dumps([*others, fitted], ensure_ascii=False)}"


def _default(run: str, folder: Path) -> Path:
    return (
        Path(f"probe-{run}.safetensors") if o.is_shipped(folder) else folder / "probe.safetensors"
    )
