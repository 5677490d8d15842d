"""The folder of a run: its spec, and whether it may be begun or gone on with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs

from .. import edge
from ..errors import UserError
from ..experiment import Experiment
from ..files import only_parts, read_object, remove_parts, write_json
from .checkpoint import checkpoints

PACKAGES = ("longtake", "torch", "diffusers", "accelerate", "peft", "transformers")
FREE = (  # may change on resume
    "steps", "save_every", "save_minutes", "keep", "log_every", "gain_every", "accumulate",
)  # fmt: skip


def check_run(experiment: Experiment, run: Path, *, resume: bool) -> Path | None:
    """Give the checkpoint to go on from, or None to begin; writes nothing.

    Raises:
        UserError: the folder holds a run and `resume` is not set, or a run of another spec, or
            other files.
    """
    spec = run / "spec.json"
    if not spec.exists():
        if run.is_dir() and not only_parts(run):
            raise UserError(f"--out {run} is a folder with other files in it, and no run")
        return None
    newest = checkpoints(run)[-1] if checkpoints(run) else None
    if newest is None:  # nothing was trained yet, so nothing can be lost
        return None
    if not resume:
        raise UserError(f"{run} holds a run: go on with --resume latest, or name another --out")
    _same_experiment(experiment, read_object(spec, "run", "experiment")["experiment"], run)
    return newest


def claim_run(experiment: Experiment, run: Path) -> None:
    """Write the resolved spec into the run's folder, and clear what a kill left half-written."""
    write_json(run / "spec.json", resolved(experiment))
    remove_parts(run)


def _same_experiment(experiment: Experiment, found: Any, run: Path) -> None:
    free = {name: getattr(experiment.train, name) for name in FREE}
    before = edge.from_json(found, Experiment)
    before = attrs.evolve(before, train=attrs.evolve(before.train, **free))
    if before == experiment:
        return
    old, new = edge.to_json(before), edge.to_json(experiment)
    odd = [f"{k} was {a}, is {b}" for k, a, b in differences(old, new)]
    raise UserError(f"{run} is a run of another spec: {'; '.join(odd[:3])}")


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Give (path, old, new) of every leaf in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        parts = [differences(old.get(k), new.get(k), f"{path}.{k}".lstrip(".")) for k in keys]
        return [row for part in parts for row in part]
    return [] if old == new else [(path, old, new)]


def resolved(experiment: Experiment) -> dict[str, Any]:
    """Give what spec.json holds: the experiment, resolved, and the versions it ran with."""
    return {"experiment": edge.to_json(experiment), "versions": versions()}


def versions() -> dict[str, str]:
    """Give the versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
