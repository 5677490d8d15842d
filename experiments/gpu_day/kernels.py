"""`kernels`: `longtake bench kernels`, an encoder a part, so that it goes on where it stopped."""

from __future__ import annotations

from functools import partial

import attrs

from ...core.kernel_bench.bench import Form, chosen_setups, describe_device, measure_encoder
from ...core.kernel_bench.goals import judge
from .day import Session, StepResult


def run(session: Session, results: StepResult) -> None:
    """Note every encoder beside its peers and the device's limits, and which goals are met.

    Raises:
        LongtakeError: some of it failed.
        TimeIsUp: the rest is for the next run.
    """
    device, full = session.device, not session.tiny
    form, machine = Form.of(device, full=full), describe_device(device)
    results.add("machine", machine)
    setups = chosen_setups([], full=full)
    for setup in setups:
        results.measure(setup.name, partial(measure_encoder, setup, form, device))
    made = [setup.name for setup in setups if setup.name in results.figures]
    goals = judge({name: results.figures[name] for name in made}, machine, form.name)
    results.add("goals", [attrs.asdict(goal) for goal in goals])
    results.raise_faults()
