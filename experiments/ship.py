"""Turn a run into weights that ship: in fp16, with spec, command, data and curve beside them.

    python -m longtake.experiments.ship runs/full --data stores/full --after runs/small

`--photos FOLDER` names the photographs that were filmed, with package, author and licence, as
`python -m longtake.experiments.photos` lists them. It writes `experiments/weights/<experiment>/`;
a folder there is found by its name from then on.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import save_file

from ..core.config import differences, load_experiment, on_backbone, to_json
from ..core.data.store import Record, Store
from ..core.errors import UserError
from ..core.experiment import Experiment
from ..core.measure.linear import FILE as LINEAR_CODE
from ..core.plugin_errors import exit_code
from ..core.registry import registry
from ..core.tools.files import (
    check_out_folder,
    open_tensors,
    read_json,
    read_json_lines,
    whole_folder,
    write_json,
)
from ..core.train.checkpoint import read_run, step_of
from .closed_form.begin import FACTS
from .common import command_line
from .photos import read_photographs

WEIGHTS = Path(__file__).parent / "weights"
SMALL = 2**16  # numbers of a tensor that is not halved


def ship(
    run: Path,
    data: Path,
    out: Path = WEIGHTS,
    after: Sequence[Path] = (),
    photos: Path | None = None,
) -> Path:
    """Write the newest checkpoint of a run as shipped weights, and return their folder.

    Args:
        run: the last run.
        data: the store that it, and those before it, were trained on.
        out: where weights ship from.
        after: the runs that it went on from, first to last.
        photos: the folder of the photographs that the store's films show; None: it has none.

    Raises:
        UserError: the store has films of photographs that `photos` does not list.
    """
    experiment, checkpoint = read_run(run)
    records = Store.open(data).records
    photographs = listed_photographs(records, photos)
    target = out / experiment.name
    check_out_folder(target)
    with whole_folder(target) as part:
        for name in ("memory.safetensors", "lora.safetensors"):
            if (checkpoint / name).exists():
                halve(checkpoint / name, part / name)
        if (run / LINEAR_CODE).exists():
            shutil.copyfile(run / LINEAR_CODE, part / LINEAR_CODE)
        if (checkpoint / "backbone").is_dir():
            halve_backbone(checkpoint / "backbone", part / "backbone")
        write_json(part / "spec.json", read_json(run / "spec.json", "run"))
        clips = [
            {"source": r.source, "fingerprint": r.fingerprint, "mirror": r.mirror}
            | ({"reverse": r.reverse, "speed": r.speed} if not r.original else {})
            | ({"photos": list(r.photos)} if r.photos else {})
            for r in records
        ]
        starts = (None, *after)
        parts = [
            provenance(one, data, start) for one, start in zip((*after, run), starts, strict=True)
        ]
        listed = {"photographs": photographs} if photographs else {}
        write_json(part / "training.json", {"parts": parts, "clips": clips, **listed})
    return target


def listed_photographs(records: Sequence[Record], photos: Path | None) -> list[dict[str, Any]]:
    """Return what is known of the photographs that a store's films show, by file name.

    Args:
        records: of the store.
        photos: the folder whose list names them.

    Raises:
        UserError: the list lacks one, or there is none.
    """
    shown = {
        mark: name for r in records for name, mark in zip(r.photos, r.photo_marks, strict=True)
    }
    if not shown:
        return []
    if photos is None:
        raise UserError("the store has films: name the folder of their photographs by --photos")
    known = {one.fingerprint: one for one in read_photographs(photos)}
    missing = sorted(shown[mark] for mark in set(shown) - set(known))
    if missing:
        raise UserError(f"{photos} does not list {missing[0]}, which the store's films show")
    ordered = sorted((known[mark] for mark in shown), key=lambda one: one.file)
    return [attrs.asdict(one) for one in ordered]


def provenance(run: Path, data: Path, start: Path | str | None = None) -> dict[str, object]:
    """Return how a run was trained: its command, spec, steps, minutes and curve.

    Of one that began in closed form, and has no steps: its command and loss.

    Args:
        run: its folder.
        data: the store it was trained on.
        start: the run whose weights it began with; None: the one that it names itself.
    """
    experiment, checkpoint = read_run(run)
    start = start or read_json(run / "spec.json", "run").get("start")
    if (run / FACTS).exists():
        words = ["python", "-m", "longtake.experiments.closed_form", experiment.name]
        words += ["--data", str(data), "--out", str(run)]
        facts = read_json(run / FACTS, "closed form")
        words += ["--batches", str(facts["batches"])]
        return {"command": shlex.join(words), "area": experiment.cache.area, **facts}
    lines = read_json_lines(run / "metrics.jsonl")
    paced = [*lines, *read_json_lines(run / "pace.jsonl")]  # older runs had both in one file
    paces = [line["seconds_a_step"] for line in paced if "seconds_a_step" in line]
    return {
        "command": command(experiment, run, data, start),
        "train": to_json(experiment)["train"],
        **({"finetune": to_json(experiment)["finetune"]} if experiment.finetune else {}),
        "area": experiment.cache.area,
        "steps": step_of(checkpoint),
        "minutes": round(sum(paces) / max(1, len(paces)) * step_of(checkpoint) / 60, 1),
        "curve": lines,
    }


def command(experiment: Experiment, run: Path, data: Path, start: Path | str | None) -> str:
    """Return the command that trains so: a shipped experiment, and what differs from it by --set.

    One that does not ship by its name goes by the name of the JSON file that its spec would be.
    """
    name = experiment.name
    shipped = registry().experiments.get(name)
    verb = "pretrain" if experiment.finetune is None else "finetune"
    words = ["longtake", verb, name if shipped else f"{name}.json"]
    words += ["--data", str(data), "--out", str(run)]
    words += ["--start", str(start)] if start else []
    old = load_experiment(name)[1] if shipped else experiment
    spec = experiment.backbone
    if type(spec) is not type(old.backbone):  # it brings its recipe: what differs then comes after
        old = on_backbone(old, spec)
        words += ["--set", f"backbone={as_word(to_json(spec))}"]
    for path, _, value in differences(to_json(old), to_json(experiment)):
        words += ["--set", f"{path}={as_word(value)}"]
    return shlex.join(words)


def as_word(value: Any) -> str:
    """Return a value as --set reads it: text as it is where it cannot be taken for JSON."""
    text = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        return text
    try:
        json.loads(value)
    except ValueError:
        return value
    return text


def halve(source: Path, target: Path, small: int = 0) -> None:
    """Write a safetensors file in fp16, its metadata and tensors of few numbers kept."""
    with open_tensors(source) as file:
        metadata = file.metadata()
        tensors = {name: halved(file.get_tensor(name), small) for name in file.keys()}
    save_file(tensors, target, metadata=metadata)


def halve_backbone(source: Path, target: Path) -> None:
    """Write a diffusers folder in fp16."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            halve(path, target / path.name, SMALL)
        else:
            shutil.copyfile(path, target / path.name)


def halved(tensor: torch.Tensor, small: int = 0) -> torch.Tensor:
    """Return floats as fp16; other tensors, and those of at most `small` numbers, as they are.

    In bf16, of the same size, the tiny memory that begins in closed form loses 0.26 dB. A DiT's
    first projection is small: encoders know it by its values (`Fit.digest`).
    """
    kept = not tensor.is_floating_point() or tensor.numel() <= small
    return tensor if kept else tensor.half()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the weights and return the exit code."""
    parser = command_line("ship", __doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the store of all these runs")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--after", type=Path, nargs="*", default=(), help="runs it went on from")
    parser.add_argument("--photos", type=Path, help="folder of the photographs of its films")
    args = parser.parse_args(arguments)
    try:
        print(ship(args.run, args.data, args.out, args.after, args.photos))
    except Exception as error:  # a plugin may raise anything
        return exit_code(error, "ship")
    return 0


if __name__ == "__main__":
    sys.exit(main())
