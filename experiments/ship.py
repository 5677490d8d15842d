"""Turn a run into weights that ship: bf16, with spec, command, data and curve beside them.

    python -m longtake.experiments.ship runs/full --data stores/full --after runs/small

writes `experiments/weights/<experiment>/`; a folder there is found by its name from then on.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..core.data.store import Store
from ..core.edge import to_json
from ..core.files import (
    open_tensors,
    read_json,
    read_lines,
    whole_folder,
    write_json,
)
from ..core.train.checkpoint import read_run, step_of

WEIGHTS = Path(__file__).parent / "weights"


def ship(run: Path, data: Path, out: Path = WEIGHTS, after: Sequence[Path] = ()) -> Path:
    """Write the newest checkpoint of a run as shipped weights and give their folder.

    Args:
        run: the last run.
        data: the store it was trained on.
        out: where weights ship from.
        after: the runs that it went on from, first to last.
    """
    experiment, checkpoint = read_run(run)
    target = out / experiment.name
    with whole_folder(target) as part:
        for name in ("memory.safetensors", "lora.safetensors"):
            if (checkpoint / name).exists():
                halve(checkpoint / name, part / name)
        if (checkpoint / "backbone").is_dir():
            halve_backbone(checkpoint / "backbone", part / "backbone")
        write_json(part / "spec.json", read_json(run / "spec.json", "run"))
        clips = [
            {"source": r.source, "fingerprint": r.fingerprint, "mirror": r.mirror}
            for r in Store.open(data).records
        ]
        parts = [provenance(each) for each in (*after, run)]
        write_json(part / "training.json", {"parts": parts, "clips": clips})
    return target


def provenance(run: Path) -> dict[str, object]:
    """Give what a run was: spec, steps, seconds and curve."""
    experiment, checkpoint = read_run(run)
    lines = read_lines(run / "metrics.jsonl")
    paced = [*lines, *read_lines(run / "pace.jsonl")]  # older runs had both in one file
    paces = [line["seconds_a_step"] for line in paced if "seconds_a_step" in line]
    return {
        "verb": "longtake pretrain",
        "train": to_json(experiment)["train"],
        "area": experiment.cache.area,
        "steps": step_of(checkpoint),
        "minutes": round(sum(paces) / max(1, len(paces)) * step_of(checkpoint) / 60, 1),
        "curve": lines,
    }


def halve(source: Path, target: Path) -> None:
    """Write a safetensors file in bf16, its metadata kept."""
    with open_tensors(source) as file:
        metadata = file.metadata()
        tensors = {name: halved(file.get_tensor(name)) for name in file.keys()}
    save_file(tensors, target, metadata=metadata)


def halve_backbone(source: Path, target: Path) -> None:
    """Write a diffusers folder in bf16."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            halve(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def halved(tensor: torch.Tensor) -> torch.Tensor:
    """Give floats as bf16, other tensors as they are."""
    return tensor.bfloat16() if tensor.is_floating_point() else tensor


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the store it was trained on")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--after", type=Path, nargs="*", default=(), help="runs it went on from")
    args = parser.parse_args()
    print(ship(args.run, args.data, args.out, args.after))


if __name__ == "__main__":
    main()
