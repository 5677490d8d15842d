"""Begin an experiment in closed form, and write it as a run of no steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import evolve

from ...core.data.store import Store
from ...core.experiment import Experiment
from ...core.tools.files import whole_folder, write_json
from ...core.train.checkpoint import save_model
from ...core.train.pretrain import begin_run
from .encoder import begin_encoder
from .fitting import Fitting, from_scratch
from .heads import begin_heads, fit_decoder, fit_outputs

FACTS = "closed-form.json"  # beside a run's spec: how it began


def begin(experiment: Experiment, store: Store, count: int) -> Fitting:
    """Return the model of an experiment as it begins in closed form.

    Raises:
        UserError: as `Fitting.of`.
    """
    torch.manual_seed(experiment.train.seed)
    fitting = Fitting.of(experiment, store, count)
    begin_encoder(fitting)
    read = begin_heads(fitting, *fit_decoder(fitting))
    fit_outputs(fitting, read)
    return fitting


def write(
    fitting: Fitting, experiment: Experiment, store: Store, out: Path, facts: Mapping[str, Any]
) -> None:
    """Write the model as a run of no steps, which `pretrain --start` goes on from.

    Args:
        fitting: the model.
        experiment: as it was asked for.
        store: that it was fitted to.
        out: the run; whole when its `FACTS` are there.
        facts: what to keep of how it began, beside the batches.
    """
    experiment = evolve(
        experiment,
        backbone=from_scratch(experiment),
        train=evolve(experiment.train, trains="all"),
    )
    out.mkdir(parents=True, exist_ok=True)
    with whole_folder(out / "checkpoint-0") as folder:
        save_model(folder, evolve(fitting.model, experiment=experiment))
    begin_run(experiment, store, out, "fp32")
    write_json(out / FACTS, {"batches": fitting.count, **facts})
