"""The table of `backbones/README.md`: sizes of published backbones, the paper's encoder on each.

    python -m longtake.experiments.sizes

Every model is built through its real class at its real size, on no device; no weights are read.
"""

from __future__ import annotations

import attrs

from ..backbones.specs import DiTSpec
from ..core.model import ModelSizes, model_sizes
from ..core.registry import registry
from ..core.show import RATES
from ..core.values.grid import Rate
from ..plugins.compressors.specs import Conv

MILLION = 1e6
BEGIN, END = "<!-- sizes -->", "<!-- /sizes -->"


def published() -> dict[str, DiTSpec]:
    """Return the specs of the published backbones by name, without their weights."""
    specs = {plugin.name: plugin.spec for plugin in registry().of("backbone")}
    dits = {name: spec() for name, spec in specs.items() if issubclass(spec, DiTSpec)}
    return {name: attrs.evolve(spec, weights=None) for name, spec in dits.items() if spec.published}


def encoder(rate: str) -> Conv:
    """Return the paper's encoder at a rate such as `4x4x2`."""
    return Conv(rate=Rate.parse(rate))


def row(name: str, spec: DiTSpec) -> str:
    """Return a backbone's line of the table."""
    return _line(name, model_sizes(spec, [encoder(rate) for rate in RATES]))


def _line(name: str, sizes: ModelSizes) -> str:
    shapes = sizes.geometry
    stride = f"{shapes.vae_stride.time}×{shapes.vae_stride.height}×{shapes.vae_stride.width}"
    cells = [
        f"`{name}`",
        f"{sizes.parameters / MILLION:,.0f} M",
        f"{shapes.width:,}",
        str(shapes.blocks),
        f"{shapes.channels}, {stride}",
        f"{shapes.fps:g}",
        *(f"{parameters / MILLION:.1f} M" for parameters in sizes.encoders),
    ]
    return f"| {' | '.join(cells)} |"


def head() -> list[str]:
    """Return the first two lines of the table."""
    rates = [rate.replace("x", "×") for rate in RATES]
    names = ["backbone", "parameters", "width", "blocks", "latents", "fps", *rates]
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]


def table() -> str:
    """Return the whole table in Markdown."""
    return "\n".join([*head(), *(row(name, spec) for name, spec in published().items())])


if __name__ == "__main__":
    print(table())
