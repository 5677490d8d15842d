"""One run of a table: train a row with a seed, measure it, and keep what the table needs."""

from __future__ import annotations

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
from ...core.config import SpecError, from_json, to_json
from ...core.data.store import Record, Store
from ...core.errors import UserError
from ...core.experiment import Experiment
from ...core.interfaces.codec import Codec, frames_of
from ...core.interfaces.retriever import LatentFrames
from ...core.interfaces.spec import CodecSpec, CompressorSpec
from ...core.measure.measure import measure
from ...core.measure.quality import Kept
from ...core.measure.result import MeasureResult
from ...core.model import Model, all_needs, last_frames
from ...core.registry import build
from ...core.tools.device import pick_device
from ...core.tools.files import read_json, write_json
from ...core.tools.pictures import save_png
from ...core.tools.progress import progress_bar
from ...core.train.checkpoint import checkpoints, load_run, step_of, with_weights
from ...core.train.pretrain import check_run, differences, pretrain
from ...core.values.grid import Rate
from ...core.values.history import History
from ...plugins.compressors.specs import Window
from ...plugins.maskers.specs import Noise
from ..common import commit, curve, facts
from .rows import Budget, Row, masker, rows

# ⟦experiments/tables/cost.py⟧ What a row's encoder costs: parameters, floating-point operations, and time beside its peers.


WARM, ROUNDS = 2, 7
REFERENCE = "proposed-4x4x2"
Paces = Mapping[str, float]  # seconds by row


@torch.no_grad()
def cost(model: Model, history: History) -> dict[str, Any]:
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


@torch.no_grad()
def race(entries: Mapping[str, tuple[Model, History]]) -> dict[str, float]:
    """Return the seconds of each encoder: the median of rounds in which all take their turn."""
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    for number in range(WARM + ROUNDS):
        for name, (model, history) in entries.items():
            taken = _once(model, history)
            if number >= WARM:
                seconds[name].append(taken)
    return {name: median(found) for name, found in seconds.items()}


def _once(model: Model, history: History) -> float:
    device = history.latents.device
    began = time.perf_counter()
    model.encoder(history)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


# ⟦experiments/tables/reader.py⟧ The DiT that all rows of a table share: the Stage 0 base, taught to read frames beside its own. Published video DiTs that animate images or extend videos can do this when Stage I begins; the tiny base, a plain video model, cannot. So before any row it is trained whole with clean, uncompressed latents of its window as memory. That favours memories made of the DiT's own tokens, as it does on published DiTs: the page of the table says so.


EVERY = 1024  # latents: more than any window has


def reader(budget: Budget) -> Experiment:
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
        compressors=(Window(latents=EVERY),),
        masker=Noise(counts=(4,), clean=1.0),
        train=train,
    )


def teach(budget: Budget, store: Path, run: Path) -> bool:
    """Train the shared DiT, going on where it stopped; False if it was stopped again."""
    if trained(budget, run) is not None:
        return True
    with progress_bar("the shared DiT") as report:
        done = pretrain(reader(budget), store, run, resume=True, progress=report)
    return not done.stopped


def trained(budget: Budget, run: Path) -> Path | None:
    """Return the folder of the trained DiT in a run; None where that is still to come.

    Raises:
        UserError: the run is of another spec.
    """
    check_run(reader(budget), run, resume=True)
    found = checkpoints(run)
    whole = bool(found) and step_of(found[-1]) >= budget.reader_steps
    return found[-1] / "backbone" if whole else None


# ⟦experiments/tables/strips.py⟧ One frame of one clip as each memory gives it back, for the picture of a table.


SHOWN = 3  # clips in a strip
ORIGINAL = "original.png"
PLACE = 0.5  # of the history, where the frame is taken


@torch.no_grad()
def save_strip(path: Path, model: Model, store: Store, result: MeasureResult, kept: Kept) -> None:
    """Write the same frames of the same clips, as the main retriever gave them, side by side."""
    codec: Codec[CodecSpec] = build(model.experiment.backbone.codec)
    shown = [_shown(codec, store, result, kept, place) for place in chosen(result)]
    save_png(path, torch.cat([given for given, _ in shown], dim=-1))
    save_png(path.with_name(ORIGINAL), torch.cat([true for _, true in shown], dim=-1))


def chosen(result: MeasureResult) -> list[int]:
    """Return the places of clips that are shown: spread over the list, of the commonest size."""
    sizes = [clip.size for clip in result.clips]
    common = max(set(sizes), key=sizes.count)
    alike = [place for place, size in enumerate(sizes) if size == common]
    count = min(SHOWN, len(alike))
    return [alike[k * len(alike) // count] for k in range(count)]


def _shown(
    codec: Codec[CodecSpec], store: Store, result: MeasureResult, kept: Kept, place: int
) -> tuple[Tensor, Tensor]:
    """Return the frame as it came back and as it was, uint8 `[3, P, Q]`."""
    clip = result.clips[place]
    record = next(found for found in store.records if found.id == clip.id)
    given = kept[clip.id, result.main]  # [C, T, H, W]
    length = given.shape[1]
    at = int(PLACE * length)
    window, omega = store.window(record, 0, length, [], True), torch.tensor([[at]])
    back = LatentFrames(latents=given[None, :, at : at + 1])
    assert window.pixels is not None  # it was asked for
    true = window.pixels[0, :, frames_of(at, codec.stride.time)[-1]]
    return last_frames(codec, window.latents, omega, back), true


FORMAT = 2
WHAT = "result of one run of a table"


@frozen(kw_only=True)
class Bench:
    """Where a table's work lies.

    Attributes:
        out: folder of the table; `stores`, `reader`, `runs` and `measured` lie in it.
        videos: folder with `train` and `val`.
    """

    out: Path
    videos: Path
    budget: Budget

    @property
    def reader(self) -> Path:
        """The run of the DiT that all rows share."""
        return self.out / "reader"

    def experiment(self, row: Row, seed: int) -> Experiment:
        """Return the experiment of a row and a seed, on the shared DiT where that is trained."""
        found, weights = self.budget.experiment(row, seed), trained(self.budget, self.reader)
        return found if weights is None else with_weights(found, weights)

    def run(self, row: Row, seed: int) -> Path:
        """Return the folder of a training run."""
        return self.out / "runs" / f"{row.name}-{seed}"

    def result(self, row: Row, seed: int) -> Path:
        """Return the file of what was measured."""
        return self.out / "measured" / f"{row.name}-{seed}.json"

    def store(self, split: str) -> Path:
        """Return the store of a split."""
        return self.out / "stores" / split

    def read(self, row: Row, seed: int) -> dict[str, Any] | None:
        """Return what was measured, or None where that is still to come.

        Raises:
            UserError: it is of another spec: another budget, or an older version's row.
        """
        path = self.result(row, seed)
        if not path.exists():
            return None
        found = dict(read_json(path, WHAT))
        odd = differences(found.get("spec"), to_json(self.experiment(row, seed)))
        if found.get("format") != FORMAT or odd:
            was = "; ".join(f"{key} was {old}, is {new}" for key, old, new in odd[:3])
            raise UserError(f"{path} is of another table ({was or 'older'}): name another --out")
        return found


def prepare(bench: Bench, rows: list[Row]) -> None:
    """Cache the clips of both splits at every rate that a row needs; what is there is kept.

    Raises:
        UserError: a folder of videos is missing or of no use.
    """
    for split in ("train", "val"):
        needed = [all_needs(bench.budget.experiment(row, 0)) for row in rows]
        rates = frozenset[Rate]().union(*(needs.rates for needs in needed))
        pixels = split == "val" or any(needs.pixels for needs in needed)
        spec = evolve(bench.budget.cache, mirror=split == "train", pixels=pixels)
        experiment = evolve(bench.budget.experiment(rows[0], 0), cache=spec)
        with progress_bar(f"cache {split}") as report:
            cache(
                experiment,
                bench.videos / split,
                bench.store(split),
                rates=rates,
                pixels=pixels,
                device=pick_device(),
                progress=report,
            )


def work(bench: Bench, row: Row, seed: int) -> bool:
    """Train and measure one run, going on where it stopped; False if it was stopped again.

    The DiT that all rows share is trained first.
    """
    if not teach(bench.budget, bench.store("train"), bench.reader):
        return False
    experiment, out = bench.experiment(row, seed), bench.run(row, seed)
    with progress_bar(out.name) as report:
        trained = pretrain(experiment, bench.store("train"), out, resume=True, progress=report)
    if trained.stopped:
        return False
    model, store, kept = load_run(out).to(pick_device()), Store.open(bench.store("val")), Kept()
    asked = alike(model)
    with progress_bar(f"measure {out.name}") as report:
        result = measure(asked, store, run=out.name, keep=kept, progress=report)
    save_strip(bench.out / "strips" / f"{out.name}.png", model, store, result, kept)
    body = {"row": row.name, "title": row.title, "seed": seed, **_body(model, store, result)}
    trained_as = {
        "reader": curve(bench.reader, bench.budget.reader_steps, reader(bench.budget)),
        "training": curve(out, trained.step, experiment),
    }
    write_json(bench.result(row, seed), {"format": FORMAT, **body, **trained_as})
    return True


def alike(model: Model) -> Model:
    """Return the model to be measured as every other row is: Ω anywhere, in the control, too."""
    return evolve(model, experiment=evolve(model.experiment, masker=masker()))


def paces(bench: Bench, rows: Sequence[Row]) -> dict[str, float]:
    """Return the seconds that the encoder of each trained row takes, all in turn on one machine."""
    store, entries = Store.open(bench.store("val")), {}
    for row in rows:
        runs = [run for seed in bench.budget.seeds if (run := bench.run(row, seed)).is_dir()]
        if runs:
            model = load_run(runs[0]).to(pick_device())
            entries[row.name] = (model, _history(model.experiment, store))
    return race(entries)


def _body(model: Model, store: Store, result: MeasureResult) -> dict[str, Any]:
    clips = [asdict(clip) for clip in result.clips]
    ages = {found.name: asdict(found.unmasked)["ages"] for found in result.retrievals}
    return {
        "main": result.main,
        "metrics": [metric.name for metric in result.metrics],
        "missing": {metric.name: metric.needs for metric in result.missing},
        "kinds": {found.name: found.kind for found in result.retrievals},
        "clips": clips,
        "ages": ages,
        "gain": asdict(result.gain),
        "cost": cost(model, _history(model.experiment, store)),
        "spec": to_json(model.experiment),
        "facts": facts(),
        **commit(),
    }


def _history(experiment: Experiment, store: Store) -> Any:
    """Return the measured window of the first clip that is long enough, else of the longest."""
    shapes = experiment.backbone.geometry
    wanted = shapes.latents(shapes.frames(experiment.measure.seconds, store.fps))
    own: list[Record] = [record for record in store.records if not record.mirror]
    long = [record for record in own if record.latents >= wanted]
    record = long[0] if long else max(own, key=lambda found: found.latents)
    needs = all_needs(experiment)
    length = min(wanted, record.latents)
    window = store.window(record, 0, length, sorted(needs.rates), needs.pixels)
    return window.to(torch.device(pick_device()))


# ⟦experiments/tables/found.py⟧ Which rows and seeds of a table are measured, whatever the call that asks was told to do.


Runs = list[dict[str, Any]]


def measured(bench: Bench, chosen: Sequence[Row]) -> list[tuple[Row, Runs]]:
    """Return every row that is measured with its runs, one a seed: known rows, then users' own.

    Rows of other calls' `--add` are taken in from what they wrote, where their plugin is at hand.

    Raises:
        UserError: a result is of another spec.
    """
    budget = bench.budget
    known = rows(budget.backbone.geometry, budget.history)
    named: dict[str, Row] = {}
    for row in (*known, *chosen, *_others(bench)):
        named.setdefault(row.name, row)
    found = [(row, _runs(bench, row)) for row in named.values()]
    return [(row, runs) for row, runs in found if runs]


def _runs(bench: Bench, row: Row) -> Runs:
    ends = [path.stem.removeprefix(f"{row.name}-") for path in _files(bench)]
    seeds = sorted(int(end) for end in ends if end.isdigit())
    return [run for seed in seeds if (run := bench.read(row, seed)) is not None]


def _files(bench: Bench) -> list[Path]:
    return sorted((bench.out / "measured").glob("*.json"))


def _others(bench: Bench) -> list[Row]:
    """Return the rows of results, as they say themselves."""
    found = []
    for path in _files(bench):
        data = read_json(path, WHAT)
        try:
            spec = from_json(data["spec"]["compressors"][0], CompressorSpec)
        except (KeyError, IndexError, SpecError):
            continue  # its plugin is not at hand, or it is of an older version
        found.append(Row(name=data["row"], title=data.get("title", data["row"]), compressor=spec))
    return found
