"""What cannot be measured is refused before any work is done."""

from __future__ import annotations

from collections.abc import Mapping

from ..data.fits import check_fits
from ..data.store import Store
from ..errors import UserError
from ..grid import Size3
from ..metric import Metric
from ..model import Model, all_needs
from ..spec import MetricSpec

Metrics = Mapping[str, Metric[MetricSpec]]


def check_store(model: Model, store: Store) -> None:
    """Refuse a store that does not fit the experiment.

    Raises:
        UserError: it was made for something else, or holds mirrored clips only.
    """
    check_fits(model.experiment, store, all_needs(model.experiment).rates, decodes=True)
    if all(record.mirror for record in store.records):
        raise UserError(f"{store.root} holds mirrored clips only: there is nothing to measure")


def check_metrics(store: Store, measured: Metrics, missing: Metrics, stride: Size3) -> None:
    """Refuse frames that a metric cannot compare.

    Raises:
        UserError: no metric can be measured here, or a clip is too small for one.
    """
    if not measured:
        lacking = "; ".join(f"{name} needs {metric.lacks()}" for name, metric in missing.items())
        raise UserError(f"none of the experiment's metrics can be measured here: {lacking}")
    for record in store.records:
        size = (record.height * stride.height, record.width * stride.width)
        for name, metric in measured.items():
            if min(size) < metric.least:
                raise UserError(
                    f"{name} needs frames of {metric.least}x{metric.least} or more, but "
                    f"{record.name} has {size[0]}x{size[1]}: change its spec, or leave it out"
                )
