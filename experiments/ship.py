"""Turn a run into weights that ship: bf16, with spec, command, data and curve beside them.

    python -m longtake.experiments.ship runs/tiny --data stores/train

writes `experiments/weights/<experiment>/`; a folder there is found by its name from then on.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from ..core.data.store import Store
from ..core.files import (
    open_tensors,
    read_header,
    read_json,
    read_lines,
    whole_folder,
    write_json,
    write_tensors,
)
from ..core.train.checkpoint import read_run, step_of

WEIGHTS = Path(__file__).parent / "weights"


def ship(run: Path, data: Path, out: Path = WEIGHTS) -> Path:
    """Write the newest checkpoint of a run as shipped weights and give their folder."""
    experiment, checkpoint = read_run(run)
    target = out / experiment.name
    with whole_folder(target) as part:
        halve_encoder(checkpoint / "memory.safetensors", part / "memory.safetensors")
        if (checkpoint / "backbone").is_dir():
            halve_backbone(checkpoint / "backbone", part / "backbone")
        if (checkpoint / "lora.safetensors").exists():
            shutil.copyfile(checkpoint / "lora.safetensors", part / "lora.safetensors")
        spec = read_json(run / "spec.json", "run")
        write_json(part / "spec.json", {**spec, "step": step_of(checkpoint)})
        write_json(part / "training.json", provenance(run, Store.open(data), step_of(checkpoint)))
    return target


def provenance(run: Path, store: Store, step: int) -> dict[str, object]:
    """Give the command, the clips and the curve that weights come from."""
    lines = read_lines(run / "metrics.jsonl")
    clips = [
        {"source": r.source, "fingerprint": r.fingerprint, "mirror": r.mirror}
        for r in store.records
    ]
    seconds = sum(line.get("seconds_a_step", 0.0) for line in lines) / max(
        1, sum("seconds_a_step" in line for line in lines)
    )
    return {
        "command": "longtake pretrain, with the spec of spec.json",
        "steps": step,
        "mean_seconds_a_step": seconds,
        "clips": clips,
        "curve": [line for line in lines if "loss" in line or "memory_gain" in line],
    }


def halve_encoder(source: Path, target: Path) -> None:
    """Write an encoder file in bf16, its header kept."""
    with open_tensors(source) as file:
        header = read_header(file, source)
        tensors = {name: halved(file.get_tensor(name)) for name in file.keys()}
    write_tensors(target, tensors, header)


def halve_backbone(source: Path, target: Path) -> None:
    """Write a diffusers folder in bf16."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            tensors = {name: halved(x) for name, x in load_file(path).items()}
            save_file(tensors, target / path.name, metadata={"format": "pt"})
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
    args = parser.parse_args()
    print(ship(args.run, args.data, args.out))


if __name__ == "__main__":
    main()
