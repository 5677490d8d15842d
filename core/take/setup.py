"""What a take is made with: the run, its hashes, the sizes; written once, into spec.json."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from attrs import define, frozen

from .. import config
from ..config.faults import in_json
from ..errors import UserError
from ..experiment import Experiment
from ..interfaces.codec import Codec
from ..interfaces.spec import CodecSpec
from ..model import Model
from ..registry import build, registry
from ..tools.device import versions
from ..tools.files import hash_file, read_object
from ..tools.hub import expand_path
from ..train.checkpoint import (
    beside_spec,
    load_model,
    lora_file,
    memory_file,
    older_offered,
    read_run,
)
from ..video.placement import buckets, place
from .folder import WHAT, TakeFolder, hash_of
from .order import check_format
from .plan import take_period
from .storyboard import read_given

WIDE = (1920, 1080)  # of no particular video
TILING = ("tile", "overlap")  # of a codec: for the memory of a machine
EXPERTS = ("high", "low")  # of a backbone that has two, by the noise that they are for


@frozen(kw_only=True)
class Run:
    """Where the model of a take comes from.

    Attributes:
        experiment: as the run resolved it, with what `--set` changed.
        place: folder of the run, or an exported file; None: the model was given.
        checkpoint: its folder of weights, or that file.
        model: as it was given.
    """

    experiment: Experiment
    place: Path | None = None
    checkpoint: Path | None = None
    model: Model | None = None

    @classmethod
    def of(cls, run: Path | str | Model, sets: list[str]) -> Run:
        """Return the run of a folder, or of a model in memory.

        Raises:
            UserError, SpecError: there is no such run, or `sets` change what is not there.
        """
        if isinstance(run, Model):
            if sets:
                raise UserError("a model that was built already cannot be changed by sets")
            return cls(experiment=run.experiment, model=run)
        experiment, folder = read_run(Path(run))
        return cls(
            experiment=config.apply_sets(experiment, sets), place=Path(run), checkpoint=folder
        )

    def load(self, loras: tuple[str, ...] = ()) -> Model:
        """Return the model, with more LoRA files beside those of the run.

        Raises:
            UserError: weights are missing or damaged.
        """
        if self.model is not None:
            if loras:
                raise UserError("a model that was built already takes no more LoRA files")
            return self.model.eval()
        assert self.checkpoint is not None
        sets = [f"backbone.loras={json.dumps([*_loras(self.experiment), *loras])}"] if loras else []
        with older_offered(self.checkpoint):
            return load_model(self.checkpoint, config.apply_sets(self.experiment, sets)).eval()

    def identity(self, codec: Codec[CodecSpec]) -> dict[str, Any]:
        """Return the hashes of all weights that latents depend on, and the specs of how.

        Raises:
            UserError: weights are missing.
        """
        spec = config.identity(self.experiment)
        found: dict[str, Any] = {
            "codec": codec.identity,
            "text_encoder": build(self.experiment.backbone.text_encoder).identity,
            "compressors": spec["compressors"],
            "backbone": spec["backbone"],
        }
        if self.model is not None:
            states = (self.model.encoder.state_dict(), self.model.backbone.state_dict())
            found["encoder"], found["weights"] = map(_hash_state, states)
            return found
        assert self.checkpoint is not None
        found["encoder"] = _hash_file(memory_file(self.checkpoint))
        found["lora"] = _hash_lora(lora_file(self.checkpoint))
        found["weights"] = _hash_folder(self.checkpoint / "backbone")
        return found


def _loras(experiment: Experiment) -> tuple[str, ...]:
    found: tuple[str, ...] = getattr(experiment.backbone, "loras", ())
    return found


def lora_path(text: str, experiment: Experiment) -> Path:
    """Return the file that a user's LoRA names: `file`, `file@0.8`, `low:file@0.8`.

    Raises:
        UserError: it is for an expert that the run has not, so that it would be left out.
    """
    whole = expand_path(text)
    if whole.is_file():
        return whole
    parts = re.fullmatch(r"(?:(\w{2,}):)?(.+?)(?:@[-+\d.eE]+)?", text)
    if parts is None:
        return whole
    for_expert, file = parts[1], expand_path(parts[2])
    if for_expert is None:
        return file
    here = getattr(experiment.backbone, "expert", None)
    kind = registry().find(experiment.backbone).name
    if here is None or for_expert not in EXPERTS:
        known = "has no experts" if here is None else f"has the experts {' and '.join(EXPERTS)}"
        raise UserError(f"--lora {text}: {kind} {known}; write file or file@0.8")
    if here not in ("both", for_expert):
        raise UserError(
            f"--lora {text}: this run makes all steps with the {here}-noise expert "
            f"(backbone.expert), so a LoRA of the other would do nothing: leave it out"
        )
    return file


def _hash_state(state: dict[str, Any]) -> str:
    hashed = hashlib.sha256()
    for name in sorted(state):
        hashed.update(f"{name} {hash_of(state[name])}\n".encode())
    return hashed.hexdigest()[:16]


def _hash_file(path: Path) -> str | None:
    return hash_file(path)[:16] if path.is_file() else None


def _hash_lora(path: Path) -> str | None:
    """Return the hash of a LoRA; of two experts' files that of both."""
    low = path.with_name(path.name.replace(".high.", ".low."))
    if low == path or not low.is_file():
        return _hash_file(path)
    return hashlib.sha256(f"{_hash_file(path)} {_hash_file(low)}".encode()).hexdigest()[:16]


def _hash_folder(folder: Path) -> str | None:
    """Return the hash of the tensors' files of a folder; None where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    hashed = hashlib.sha256("".join(f"{p.name} {_hash_file(p)}\n" for p in files).encode())
    return hashed.hexdigest()[:16] if files else None


def take_size(
    experiment: Experiment, size: str | None, like: tuple[int, int], named: str = "--size"
) -> tuple[int, int]:
    """Return height and width of a take in pixels.

    Args:
        experiment: of the run.
        size: `WIDTHxHEIGHT` that was asked for; None: the experiment's.
        like: width and height of what has the aspect that is wanted, where no size is named.
        named: where the size is asked for, for messages.

    Raises:
        UserError: it is not among the run's sizes.
    """
    text = experiment.generate.size if size is None else size
    named = "generate.size" if size is None else named
    area, multiple = experiment.cache.area, experiment.backbone.geometry.multiple
    most = experiment.cache.max_aspect
    if text is None:
        placement = place(*like, area, multiple, most)
        return placement.height, placement.width
    width, _, height = read_given("size", text, named).partition("x")
    known = buckets(area, multiple, most)
    if (int(height), int(width)) not in known:
        near = sorted(known, key=lambda s: abs(s[0] - int(height)) + abs(s[1] - int(width)))
        shown = ", ".join(f"{w}x{h}" for h, w in near[:4])
        raise UserError(f"{named} {text}: this run has other sizes (cache.area {area}): {shown}")
    return int(height), int(width)


def new_spec(
    run: Run, size: tuple[int, int], *, seed: int, negative: str, asked_size: bool
) -> dict[str, Any]:
    """Return what spec.json of a new take holds, but its format.

    Raises:
        UserError: weights are missing, or `generate` does not fit the run.
    """
    experiment = run.experiment
    geometry = experiment.backbone.geometry
    codec: Codec[CodecSpec] = build(experiment.backbone.codec)
    latent = geometry.latent_size(frames=1, height=size[0], width=size[1])
    place = None if run.place is None else str(run.place.absolute())
    return {
        "run": place,
        "checkpoint": None if run.checkpoint is None else run.checkpoint.name,
        "experiment": config.to_json(experiment),
        "identity": run.identity(codec) | {"size": list(size)},
        "size": list(size),
        "size_asked": asked_size,
        "latent_size": [latent.height, latent.width],
        "channels": geometry.channels,
        "fps": geometry.fps,
        "stride": geometry.vae_stride.time,
        "period": take_period(experiment),
        "seed": seed,
        "negative": negative,
        "causal": codec.causal,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


@define
class Opened:
    """A take that is there, and the run that it was made with.

    Attributes:
        folder: of the take.
        run: as the take's spec has it.
        notes: what differs from when it began, in words.
    """

    folder: TakeFolder
    run: Run
    notes: list[str]


def open_take(root: Path, run: Path | str | Model | None, sets: list[str]) -> Opened:
    """Open a take, with its own run, or with one that must be the same.

    Raises:
        UserError: it is no take, its run is gone, or another run has other weights.
    """
    if not (root / "spec.json").exists():
        raise UserError(f"{root} is no {WHAT}")
    folder = TakeFolder.open(root)
    before = _experiment(root)
    experiment = config.apply_sets(before, sets)
    changes = sets if experiment != before else []
    notes = [f"{text} differs from what {root} began with" for text in changes]
    notes += refuse_changes(root, before, experiment)
    if isinstance(run, Model):
        notes += refuse_changes(root, before, run.experiment)
        found = Run(experiment=experiment, model=run)
    else:
        found = _find_run(folder, experiment, None if run is None else Path(run))
    threads = folder.spec.get("threads")
    if threads != torch.get_num_threads():
        notes.append(
            f"{root} began with {threads} CPU threads, here are {torch.get_num_threads()}: on a "
            "CPU latents then differ in their last digits (OMP_NUM_THREADS sets them)"
        )
    return Opened(folder, found, notes)


def refuse_changes(root: Path, before: Experiment, now: Experiment) -> list[str]:
    """Refuse memory or a backbone of other numbers than a take began with: its latents follow.

    How a codec cuts frames into tiles may change, and where weights lie, if they are the same.

    Returns:
        What could not be compared, in words.

    Raises:
        UserError: it names the first field that differs.
    """
    old, new = config.identity(before), config.identity(now)
    notes = []
    for key in ("compressors", "backbone"):
        for field, was, given in _differing(old[key], new[key], key):
            name = field.rpartition(".")[2]
            if field.startswith("backbone.codec.") and name in TILING:
                continue
            same = _same_weights(was, given) if name == "weights" else False
            if same is False:
                raise UserError(
                    f"{field}: {root} began with {_shown(was)}, not {_shown(given)}, and its "
                    "latents depend on it: leave it as it was, or begin a new take"
                )
            if same is None:
                notes.append(
                    f"{field}: {was} is not here, so nobody can tell whether {given} is the same"
                )
    return notes


def _differing(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields in which specs differ, or equally long lists of them, with both values."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differing(one, other, f"{path}.{index}")
    else:
        for field, was, given in config.differences(old, new, path):
            yield field, _kind_or(was), _kind_or(given)


def _shown(value: Any) -> str:
    """Return a value as messages show it; places of files whole."""
    return value if isinstance(value, str) else in_json(value)


def _kind_or(value: Any) -> Any:
    """Return the name of a plugin's spec, else the value."""
    return value.get("type", value) if isinstance(value, dict) else value


def _same_weights(old: Any, new: Any) -> bool | None:
    """Return whether two places of weights hold the same; None: the first is not here."""
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    first, second = (_content(text) for text in (old, new))
    return None if first is None else first == second


def _content(text: str) -> str | None:
    """Return the hash of the files that `weights` name; None where one of them is not here."""
    found = []
    for name in text.split(","):
        path = expand_path(name)
        if not path.exists():
            path = registry().weights.get(name, path)
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        if not files:
            return None
        names = [str(p.relative_to(path)) for p in files]  # of a file `.`: any name will do
        found += [f"{one} {hash_file(p)}" for one, p in zip(names, files, strict=True)]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def _experiment(root: Path) -> Experiment:
    data = read_object(root / "spec.json", WHAT, "experiment", "format")
    check_format(data, str(root), "spec")
    try:
        return config.from_json(beside_spec(data["experiment"], root), Experiment)
    except config.SpecError as error:
        raise UserError(f"{root / 'spec.json'}: {error}") from error


def _find_run(folder: TakeFolder, experiment: Experiment, run: Path | None) -> Run:
    """Return where the weights of a take are: its own checkpoint, where the run still has it."""
    recorded = folder.spec.get("run")
    given = recorded if run is None else run
    if given is None:
        raise UserError(f"{folder.root} was made with a model in memory: give it, or name RUN")
    place = Path(given)
    name = folder.spec.get("checkpoint")
    if not place.exists():
        raise UserError(f"{folder.root} was made with the run {place}, which is gone: name RUN")
    own = place / str(name)
    checkpoint = own if name and own.is_dir() else read_run(place)[1]
    return Run(experiment=experiment, place=place, checkpoint=checkpoint)


def check_identity(opened: Opened) -> None:
    """Refuse a run with other weights than the take was made with.

    Raises:
        UserError: it is another encoder, or others of its weights differ.
    """
    before = opened.folder.spec["identity"]
    codec: Codec[CodecSpec] = build(opened.run.experiment.backbone.codec)
    now = opened.run.identity(codec)
    if opened.run.model is not None and "lora" in before:
        return  # a model in memory cannot be compared with files
    place, root = opened.run.place or "the model", opened.folder.root
    if before.get("encoder") != now.get("encoder"):
        raise UserError(
            f"{root} was made with encoder {before.get('encoder')}, {place} has "
            f"{now.get('encoder')}: memory would not fit; begin a new take"
        )
    for key in ("lora", "weights", "text_encoder"):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{root} was made with {key} {before.get(key)}, {place} has {now.get(key)}: "
                "begin a new take"
            )
