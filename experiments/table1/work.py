"""One run of a table: train a row with a seed, measure it, and write what the table needs.

On `tiny-wan` every row begins in closed form, the DiT's heads turned to where the tokens of that
row stand and all outputs least squares on what they read of it (`experiments.closed_form`); then
Stage I trains it. So rows are held to what a reader of their own gets out of them. Another DiT is
shared by all rows, trained further to read frames beside its own: before any row it is trained
whole with the clean, uncompressed latents of its window as memory. That favours memories made of
the DiT's own tokens, as it does on published DiTs: the page of the table says so.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from attrs import asdict, evolve, frozen
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...core.cache.cache import cache
from ...core.config import SpecError, differences, from_json, to_json
from ...core.data.store import Record, Store
from ...core.errors import UserError
from ...core.experiment import Experiment
from ...core.interfaces.codec import Codec, frames_of
from ...core.interfaces.retriever import LatentFrames
from ...core.interfaces.spec import CodecSpec, CompressorSpec
from ...core.measure.measure import measure
from ...core.measure.prepare import MeasureSetup
from ...core.measure.result import MeasureResult
from ...core.model import Model, all_needs, last_frames
from ...core.registry import build
from ...core.tools.device import pick_device
from ...core.tools.files import read_json, read_object, write_json
from ...core.tools.pictures import save_png
from ...core.tools.progress import progress_bar
from ...core.train.checkpoint import checkpoints, load_model, read_run, step_of, with_weights
from ...core.train.pretrain import check_run, pretrain
from ...core.values.grid import Rate
from ...core.values.history import History
from ...plugins.compressors.specs import Window
from ...plugins.maskers.specs import Noise
from ..closed_form.begin import FACTS, begin, write
from ..common import commit, machine_facts, say_left_out, training_progress
from .rows import TableBudget, TableRow, masker, rows

FORMAT = 2
WHAT = "result of one run of a table"
WEIGHTS = "backbone.weights"
SHOWN_VALUE = 80  # characters of a value in a message
ORIGINAL = "original.png"
SHOWN_CLIPS = 3  # in a strip
SHOWN_AT = 0.5  # of the history, where the frame of a strip is taken
ALL_LATENTS = 1024  # more than any window has
REFERENCE = "proposed-4x4x2"
WARM, ROUNDS = 2, 7  # of timing

Seconds = Mapping[str, float]  # by row
Runs = list[dict[str, Any]]


@frozen(kw_only=True)
class TableFolder:
    """The folder of a table: where its stores, runs and results are.

    Attributes:
        out: folder of the table; `stores`, `starts` or `reader`, `runs` and `measured` lie in it.
        videos: folder with `train` and `val`.
    """

    out: Path
    videos: Path
    budget: TableBudget

    @property
    def reader(self) -> Path:
        """The run of the DiT that all rows share."""
        return self.out / "reader"

    def start(self, row: TableRow, seed: int) -> Path:
        """Return the run of a row's DiT and encoder as they begin in closed form."""
        return self.out / "starts" / f"{row.name}-{seed}"

    def experiment(self, row: TableRow, seed: int) -> Experiment:
        """Return the experiment of a row and a seed, on its DiT where that is there."""
        experiment = self.budget.experiment(row, seed)
        if self.budget.closed_form:
            begun = checkpoints(self.start(row, seed))
            weights = begun[-1] / "backbone" if begun else None
        else:
            weights = trained_reader(self.budget, self.reader)
        return experiment if weights is None else with_weights(experiment, weights)

    def run(self, row: TableRow, seed: int) -> Path:
        """Return the folder of a training run."""
        return self.out / "runs" / f"{row.name}-{seed}"

    def result(self, row: TableRow, seed: int) -> Path:
        """Return the file of what was measured."""
        return self.out / "measured" / f"{row.name}-{seed}.json"

    def store(self, split: str) -> Path:
        """Return the store of a split."""
        return self.out / "stores" / split

    def read(self, row: TableRow, seed: int) -> dict[str, Any] | None:
        """Return what was measured, or None where that is still to come.

        Raises:
            UserError: it is of another spec: another budget, or an older version's row.
        """
        path = self.result(row, seed)
        if not path.exists():
            return None
        result = read_object(path, WHAT, "format", "spec")
        stored = _with_defaults(result["spec"])
        if result["format"] != FORMAT or not isinstance(stored, dict):
            raise UserError(f"{path} is of an older table: name another --out")
        changed = [
            f"{key} was {_shortened(old)}, is {_shortened(new)}"
            for key, old, new in differences(stored, to_json(self.experiment(row, seed)))
            if key != WEIGHTS or not self._same_below(old, new)
        ]
        if changed:
            raise UserError(
                f"{path} is of another table ({'; '.join(changed[:3])}): name another --out"
            )
        return result

    def _same_below(self, old: Any, new: Any) -> bool:
        """Return whether two paths end alike below the folder, which may be named or moved."""
        if not isinstance(old, str) or not isinstance(new, str):
            return False
        below = Path(new).relative_to(self.out).parts
        return Path(old).parts[-len(below) :] == below


def _shortened(value: Any) -> str:
    """Return a value as a message shows it."""
    text = str(value)
    return text if len(text) <= SHOWN_VALUE else f"{text[:SHOWN_VALUE]}…"


def _with_defaults(spec: Any) -> Any:
    """Return a stored spec with the fields that specs got since; unchanged where it has faults."""
    try:
        return to_json(from_json(spec, Experiment))
    except SpecError:
        return spec


def prepare(folder: TableFolder, rows: list[TableRow]) -> list[str]:
    """Cache the clips of both splits at every rate that a row needs; what is there is kept.

    Returns what was left out of either, a line each; it is said, too.

    Raises:
        UserError: a folder of videos is missing or of no use.
    """
    left_out: list[str] = []
    for split in ("train", "val"):
        needed = [all_needs(folder.budget.experiment(row, 0)) for row in rows]
        rates = frozenset[Rate]().union(*(needs.rates for needs in needed))
        pixels = split == "val" or any(needs.pixels for needs in needed)
        spec = evolve(folder.budget.cache, mirror=split == "train", pixels=pixels)
        experiment = evolve(folder.budget.experiment(rows[0], 0), cache=spec)
        with progress_bar(f"cache {split}") as report:
            result = cache(
                experiment,
                folder.videos / split,
                folder.store(split),
                rates=rates,
                pixels=pixels,
                device=pick_device(),
                progress=report,
            )
        left_out += [f"{split}: {line}" for line in say_left_out(result)]
    return left_out


def work(folder: TableFolder, row: TableRow, seed: int) -> bool:
    """Train and measure one run, going on where it stopped; False if it was stopped again.

    Its DiT begins first: in closed form, or trained as all rows share it.
    """
    budget, train = folder.budget, folder.store("train")
    if budget.closed_form:
        begun: dict[str, Any] = {"closed form": begin_row(folder, row, seed)}
        start = checkpoints(folder.start(row, seed))[-1]
    else:
        if not train_reader(budget, train, folder.reader):
            return False
        steps, spec = budget.reader_steps, reader(budget)
        begun, start = {"reader": training_progress(folder.reader, steps, spec)}, None
    experiment, out = folder.experiment(row, seed), folder.run(row, seed)
    with progress_bar(out.name) as report:
        training = pretrain(experiment, train, out, resume=True, start=start, progress=report)
    if training.stopped:
        return False
    model = trained_row(folder, row, seed).to(pick_device())
    store = Store.open(folder.store("val"))
    setup = MeasureSetup.build(with_common_masker(model), store)
    with progress_bar(f"measure {out.name}") as report:
        result = measure(setup, run=out.name, progress=report)
    save_strip(folder.out / "strips" / f"{out.name}.png", setup, result)
    body = {"row": row.name, "title": row.title, "seed": seed, **_body(model, store, result)}
    progress = {**begun, "training": training_progress(out, training.step, experiment)}
    write_json(folder.result(row, seed), {"format": FORMAT, **body, **progress})
    return True


def trained_row(folder: TableFolder, row: TableRow, seed: int) -> Model:
    """Return the trained model of a row and a seed, on its DiT as it lies in the folder now."""
    newest = read_run(folder.run(row, seed))[1]
    return load_model(newest, folder.experiment(row, seed)).eval()


def begin_row(folder: TableFolder, row: TableRow, seed: int) -> dict[str, Any]:
    """Begin a row in closed form, if that is not done yet; return batches and seconds.

    Raises:
        UserError: its tokens stand for more patches than the DiT has heads.
    """
    out, batches = folder.start(row, seed), folder.budget.batches
    if not (out / FACTS).exists():
        began, store = time.monotonic(), Store.open(folder.store("train"))
        experiment = folder.budget.experiment(row, seed)
        fitting = begin(experiment, store, batches)
        shutil.rmtree(out, ignore_errors=True)  # what a kill left of it
        facts = {"seconds": round(time.monotonic() - began, 1)}
        write(fitting, experiment, store, out, facts)
    return dict(read_json(out / FACTS, "the facts of a start in closed form"))


def with_common_masker(model: Model) -> Model:
    """Return the model with the masker of the other rows: the control is measured as they are."""
    return evolve(model, experiment=evolve(model.experiment, masker=masker()))


def reader(budget: TableBudget) -> Experiment:
    """Return the experiment that trains the shared DiT."""
    base = budget.shared
    train = evolve(
        base.train,
        steps=budget.reader_steps,
        batch=budget.reader_batch,
        seconds=budget.reader_seconds,
        trains="all",
        optimizer="adamw",
        rate=1e-3,
        warmup=min(20, budget.reader_steps),
        memory_dropout=0.0,
    )
    return evolve(
        base,
        name="table1-reader",
        compressors=(Window(latents=ALL_LATENTS, across_cuts=True),),
        masker=Noise(counts=(4,), clean=1.0),
        train=train,
    )


def train_reader(budget: TableBudget, store: Path, run: Path) -> bool:
    """Train the shared DiT, going on where it stopped; False if it was stopped again."""
    if trained_reader(budget, run) is not None:
        return True
    with progress_bar("the shared DiT") as report:
        training = pretrain(reader(budget), store, run, resume=True, progress=report)
    return not training.stopped


def trained_reader(budget: TableBudget, run: Path) -> Path | None:
    """Return the folder of the trained DiT in a run; None where that is still to come.

    Raises:
        UserError: the run is of another spec.
    """
    check_run(reader(budget), run, resume=True)
    saved = checkpoints(run)
    whole = bool(saved) and step_of(saved[-1]) >= budget.reader_steps
    return saved[-1] / "backbone" if whole else None


def _body(model: Model, store: Store, result: MeasureResult) -> dict[str, Any]:
    clips = [asdict(clip) for clip in result.clips]
    retrievals = result.retrievals
    ages = {one.name: asdict(one.unmasked)["ages"] for one in retrievals}
    return {
        "main": result.main,
        "metrics": [metric.name for metric in result.metrics],
        "missing": {metric.name: metric.needs or metric.failed for metric in result.missing},
        "kinds": {one.name: one.kind for one in retrievals},
        "clips": clips,
        "ages": ages,
        "gain": asdict(result.gain),
        "cost": encoder_cost(model, _history(model.experiment, store)),
        "spec": to_json(model.experiment),
        "facts": machine_facts(),
        **commit(),
    }


def _history(experiment: Experiment, store: Store) -> Any:
    """Return the measured window of the first clip that is long enough, else of the longest."""
    shapes = experiment.backbone.geometry
    latents = shapes.latents(shapes.frames(experiment.measure.seconds, store.fps))
    own: list[Record] = [record for record in store.records if record.original]
    long = [record for record in own if record.latents >= latents]
    record = long[0] if long else max(own, key=lambda record: record.latents)
    needs = all_needs(experiment)
    length = min(latents, record.latents)
    window = store.window(record, 0, length, sorted(needs.rates), needs.pixels)
    return window.to(torch.device(pick_device()))


@torch.no_grad()
def encoder_cost(model: Model, history: History) -> dict[str, Any]:
    """Return what encoding a history of one sample takes.

    Returns:
        parameters; gflop: of matrix products and convolutions (twice the multiply-adds), as
        torch's counter sees them; latents of the history.
    """
    # attention as plain products: the counter knows nothing of the fused one on CPUs
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encoder(history)
    return {
        "parameters": sum(p.numel() for p in model.encoder.parameters()),
        "gflop": counter.get_total_flops() / 1e9,
        "latents": history.size.time,
    }


def encoder_seconds(folder: TableFolder, rows: Sequence[TableRow]) -> dict[str, float]:
    """Return the seconds of each trained row's encoder, all in turn on one machine."""
    store, entries = Store.open(folder.store("val")), {}
    for row in rows:
        seeds = [seed for seed in folder.budget.seeds if folder.run(row, seed).is_dir()]
        if seeds:
            model = trained_row(folder, row, seeds[0]).to(pick_device())
            entries[row.name] = (model, _history(model.experiment, store))
    return median_seconds(entries)


@torch.no_grad()
def median_seconds(entries: Mapping[str, tuple[Model, History]]) -> dict[str, float]:
    """Return the seconds of each encoder: the median of rounds in which all take their turn."""
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    for number in range(WARM + ROUNDS):
        for name, (model, history) in entries.items():
            taken = _once(model, history)
            if number >= WARM:
                seconds[name].append(taken)
    return {name: median(rounds) for name, rounds in seconds.items()}


def _once(model: Model, history: History) -> float:
    device = history.latents.device
    began = time.perf_counter()
    model.encoder(history)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@torch.no_grad()
def save_strip(path: Path, setup: MeasureSetup, result: MeasureResult) -> None:
    """Write a frame of some clips, as the main retriever gave it, side by side as one picture.

    The same frames of the original are written beside it.
    """
    codec: Codec[CodecSpec] = build(setup.model.experiment.backbone.codec)
    shown = [_shown(codec, setup, result, place) for place in clips_to_show(result)]
    save_png(path, torch.cat([retrieved for retrieved, _ in shown], dim=-1))
    save_png(path.with_name(ORIGINAL), torch.cat([true for _, true in shown], dim=-1))


def clips_to_show(result: MeasureResult) -> list[int]:
    """Return the places of the clips to show: spread over the list, of the commonest size."""
    sizes = [clip.size for clip in result.clips]
    common = max(set(sizes), key=sizes.count)
    places = [place for place, size in enumerate(sizes) if size == common]
    count = min(SHOWN_CLIPS, len(places))
    return [places[k * len(places) // count] for k in range(count)]


def _shown(
    codec: Codec[CodecSpec], setup: MeasureSetup, result: MeasureResult, place: int
) -> tuple[Tensor, Tensor]:
    """Return the frame as it came back and as it was, uint8 `[3, P, Q]`."""
    clip, store = result.clips[place], setup.store
    record = next(record for record in store.records if record.id == clip.id)
    latents = setup.retrieved[clip.id, result.main]  # [C, T, H, W]
    length = latents.shape[1]
    at = int(SHOWN_AT * length)
    window, omega = store.window(record, 0, length, [], True), torch.tensor([[at]])
    retrieved = LatentFrames(latents=latents[None, :, at : at + 1])
    assert window.pixels is not None  # it was asked for
    true = window.pixels[0, :, frames_of(at, codec.stride.time)[-1]]
    return last_frames(codec, window.latents, omega, retrieved), true


def measured_rows(folder: TableFolder, chosen: Sequence[TableRow]) -> list[tuple[TableRow, Runs]]:
    """Return every row that is measured with its runs, one a seed: known rows, then the user's own.

    Rows of other calls' `--add` are taken in from what they wrote, where their plugin is installed.

    Raises:
        UserError: a result is of another spec.
    """
    budget = folder.budget
    known = rows(budget.backbone.geometry, budget.history)
    named: dict[str, TableRow] = {}
    for row in (*known, *chosen, *_others(folder)):
        named.setdefault(row.name, row)
    with_runs = [(row, _runs(folder, row)) for row in named.values()]
    return [(row, runs) for row, runs in with_runs if runs]


def _runs(folder: TableFolder, row: TableRow) -> Runs:
    ends = [path.stem.removeprefix(f"{row.name}-") for path in _files(folder)]
    seeds = sorted(int(end) for end in ends if end.isdigit())
    return [run for seed in seeds if (run := folder.read(row, seed)) is not None]


def _files(folder: TableFolder) -> list[Path]:
    return sorted((folder.out / "measured").glob("*.json"))


def _others(folder: TableFolder) -> list[TableRow]:
    """Return the rows that the results themselves describe."""
    others = []
    for path in _files(folder):
        data = read_json(path, WHAT)
        try:
            spec = from_json(data["spec"]["compressors"][0], CompressorSpec)
        except (KeyError, IndexError, SpecError):
            continue  # its plugin is not installed, or it is of an older version
        title = data.get("title", data["row"])
        others.append(TableRow(name=data["row"], title=title, compressor=spec))
    return others
