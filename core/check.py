"""The `check` verb: plugins through their contract, two training steps and a measurement.

The training is a tiny experiment that ships, on two small clips drawn here, with the plugin in its
place; everything is written to a folder that is thrown away.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from attrs import field, frozen

from . import config
from .cache.cache import cache
from .contract import (
    check_backbone,
    check_codec,
    check_compressor,
    check_masker,
    check_metric,
    check_retriever,
    check_text_encoder,
)
from .data.store import Store
from .errors import LongtakeError, UserError, plugin_label
from .experiment import Experiment
from .hooks import KINDS, Plugin
from .interfaces.spec import BackboneSpec, MetricSpec, PluginSpec
from .measure.measure import measure
from .measure.prepare import MeasureSetup
from .measure.quality import clip_scene
from .model import all_needs, build_retriever, model_sizes
from .plugin_errors import plugin_error
from .registry import LIST, build, plug_in, registry
from .tools.progress import Report
from .tools.words import names_like
from .train.checkpoint import load_run
from .train.pretrain import pretrain
from .video.decode import Pixels
from .video.write import write_video

BASE = "tiny-wan-2x2x2"  # the experiment, made smaller by `SMALL`
SIZE, FPS, SECONDS, CLIPS = (96, 128), 8, 2.5, 2  # of the clips
SMALL_BACKBONE = (
    "backbone.heads=2", "backbone.head_width=12", "backbone.layers=1", "backbone.ffn=16",
    'backbone.codec={"type":"dct","channels":16}', "backbone.text_encoder.width=8",
    "backbone.weights=null",
)  # fmt: skip
SMALL_COMPRESSOR = ("compressor.channels=[4,6]", "compressor.heads=2", "compressor.head_width=4")
SMALL = (
    'retrievers=["flow","mean-frame"]', 'metrics=["psnr"]', f"cache.area={SIZE[0] * SIZE[1]}",
    "cache.min_seconds=1", "train.steps=2", "train.batch=2", "train.accumulate=1",
    "train.seconds=[1,2]", "train.precision=fp32", "train.adapter.rank=2", "train.adapter.alpha=2",
    "train.warmup=1", "train.save_every=2", "train.gain_every=2", "train.log_every=1",
    "measure.seconds=2", "measure.long_seconds=0", "measure.draws=1", "measure.targets=[]",
)  # fmt: skip
PLACES = {  # where a plugin of a kind stands in the experiment, `%s` its name
    "compressor": "compressor=%s",
    "backbone": "backbone=%s",
    "codec": "backbone.codec=%s",
    "text_encoder": "backbone.text_encoder=%s",
    "masker": "masker=%s",
    "retriever": 'retrievers=["flow","%s"]',
    "metric": 'metrics=["%s"]',
}
MOST_PARAMETERS = 200_000_000  # of a backbone that is tried here
STAGES = ("contract", "cache", "training", "measuring")


@frozen(kw_only=True)
class PluginCheck:
    """What was found about one plugin.

    Attributes:
        kind, name: of the plugin.
        origin: the distribution or file that it comes from.
        faults: a line each, beginning with the stage (`contract`, `training`, ...).
        checked: the stages that it passed.
        unchecked: what could not be checked, a line each.
    """

    kind: str
    name: str
    origin: str
    faults: tuple[str, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return what to print: a line a fault, or one that says what was checked."""
        title = f"{self.kind} {self.name}"
        if self.faults:
            return [f"{title}: {fault}" for fault in self.faults]
        passed = f"no fault in {', '.join(self.checked)}" if self.checked else "nothing was checked"
        return [f"{title}: {'; '.join([passed, *self.unchecked])}"]


def check_named(name: str, sets: Sequence[str], progress: Report) -> list[PluginCheck]:
    """Check the plugins of a name, of whatever kind, or all those of a Python file.

    Args:
        name: of a plugin, or the path of a file that ends in `.py`.
        sets: changes to the tiny experiment with the plugin in it, as `--set` takes them.
        progress: called with stages done, stages in all, and a note.

    Raises:
        UserError: there is no such plugin or file, it did not load, the file has none, a change
            cannot be made, or a backbone is too large to try.
    """
    found = _plugins(name)
    alone = [_alone(plugin, sets) for plugin in found]
    experiments = [
        _experiment(plugin, sets, placed=spec is None)
        for plugin, spec in zip(found, alone, strict=True)
    ]
    total = len(found) * len(STAGES)
    results = []
    trials = zip(found, experiments, alone, strict=True)
    for index, (plugin, experiment, spec) in enumerate(trials):

        def report(stage: str, before: int = index * len(STAGES), own: Plugin = plugin) -> None:
            progress(before + STAGES.index(stage), total, f"{own.kind} {own.name}: {stage}")

        trial = _Trial(plugin=plugin, experiment=experiment, alone=spec, report=report)
        results.append(trial.run())
    progress(total, total, "")
    return results


def _plugins(name: str) -> list[Plugin]:
    if name.endswith(".py"):
        return _plugins_of(Path(name))
    known = registry().plugins
    found = [known[kind, name] for kind in KINDS if (kind, name) in known]
    if not found:
        for kind in KINDS:
            registry().check_loaded(kind, name)
        names = names_like(name, {own for _, own in known}, LIST)
        raise UserError(f"unknown plugin {name!r}; known: {names}; a file ends in .py")
    return found


def _plugins_of(path: Path) -> list[Plugin]:
    """Return the plugins of a Python file, which LONGTAKE_PLUGINS may have brought already."""

    def is_file(origin: str) -> bool:
        return origin.endswith(".py") and Path(origin).absolute() == path.absolute()

    if not any(map(is_file, registry().origins.values())):
        if told := [line for line in registry().broken if is_file(line.partition(": ")[0])]:
            raise UserError("; ".join(told))
        plug_in(path)
    origins = registry().origins
    found = [plugin for key, plugin in registry().plugins.items() if is_file(origins[key])]
    if not found:
        raise UserError(f"{path} has no plugin to check, only names of experiments or weights")
    return found


def _alone(plugin: Plugin, sets: Sequence[str]) -> PluginSpec | None:
    """Return the spec of a codec or text encoder that the tiny backbone does not take, else None.

    Such a one stands in no experiment here: its contract is all that can be checked.

    Raises:
        UserError: a change of it cannot be made, or a field of it has no default.
    """
    if plugin.kind not in ("codec", "text_encoder"):
        return None
    _, base = config.load_experiment(BASE)
    if issubclass(plugin.spec, _taken(base.backbone, plugin.kind)):
        return None
    spec = config.from_json({"type": plugin.name}, plugin.spec)
    place = f"backbone.{plugin.kind}."
    return config.apply_sets(spec, [t.removeprefix(place) for t in sets if t.startswith(place)])


def _taken(backbone: BackboneSpec, kind: str) -> type[PluginSpec]:
    """Return the class of the specs that a backbone takes as its codec or text encoder."""
    taken: type[PluginSpec] = config.hints(type(backbone))[kind]
    return taken


def _experiment(plugin: Plugin, sets: Sequence[str], *, placed: bool = True) -> Experiment:
    """Return the tiny experiment with the plugin in it, if it is to be `placed` there.

    Raises:
        UserError: a change cannot be made, or the backbone is too large.
    """
    _, base = config.load_experiment(BASE)
    changes = [*SMALL]
    if not placed:
        place = f"backbone.{plugin.kind}."
        sets = [text for text in sets if not text.startswith(place)]
    elif plugin.name != "flow":  # which the experiment has
        changes.append(PLACES[plugin.kind] % plugin.name)
    if plugin.kind != "backbone":
        changes = [*SMALL_BACKBONE, *changes]
    if plugin.kind != "compressor":
        changes = [*SMALL_COMPRESSOR, *changes]
    experiment = config.apply_sets(base, [*changes, *sets])
    backbone = experiment.backbone
    if "weights" in attrs.fields_dict(type(backbone)) and not _sets_weights(sets):
        backbone = attrs.evolve(backbone, weights=None)  # type: ignore[call-arg]
    if plugin.kind == "backbone":
        _check_size(plugin.name, backbone)
    return attrs.evolve(experiment, backbone=backbone)


def _sets_weights(sets: Sequence[str]) -> bool:
    return any(text.startswith(("backbone.weights", "backbone={")) for text in sets)


def _check_size(name: str, spec: BackboneSpec) -> None:
    try:
        count = model_sizes(spec).parameters
    except Exception:  # a stranger's may not build without memory; its contract says why
        return
    if count > MOST_PARAMETERS:
        raise UserError(
            f"backbone {name} has {count / 1e9:.1f} B parameters here: check a small one, as "
            "--set backbone.layers=1 --set backbone.heads=2"
        )


class _NotHere(Exception):
    """What a stage needs is not on this machine; the message says what."""


@frozen(kw_only=True)
class _Trial:
    """One plugin on its way through all stages; through its contract only where it is `alone`."""

    plugin: Plugin
    experiment: Experiment
    alone: PluginSpec | None
    report: Callable[[str], None]
    faults: list[str] = field(factory=list)
    checked: list[str] = field(factory=list)
    unchecked: list[str] = field(factory=list)

    def run(self) -> PluginCheck:
        with tempfile.TemporaryDirectory() as folder:
            self._run(Path(folder))
        return PluginCheck(
            kind=self.plugin.kind,
            name=self.plugin.name,
            origin=registry().origins[self.plugin.kind, self.plugin.name],
            faults=tuple(self.faults),
            checked=tuple(self.checked),
            unchecked=tuple(self.unchecked),
        )

    def _run(self, folder: Path) -> None:
        kind = self.plugin.kind
        if kind != "retriever":  # whose scene is of the run
            self._try("contract", self._contract)
        if self.alone is not None:
            taken = " or ".join(sorted(config.candidates(_taken(self.experiment.backbone, kind))))
            self.unchecked.append(
                f"training and measuring not tried: the backbone of {BASE} takes {taken}"
            )
            return
        away = self._not_here()
        if away:
            self.unchecked.append(f"training and measuring not tried: {away}")
            return
        store, run = folder / "store", folder / "run"
        if not self._try("cache", lambda: self._cache(folder / "videos", store)):
            return
        if not self._try("training", lambda: pretrain(self.experiment, store, run)):
            return
        if kind == "retriever":
            self._try("contract", lambda: self._retriever_contract(run, store))
        self._try("measuring", lambda: self._measure(run, store))

    def _try(self, stage: str, call: Callable[[], Any]) -> bool:
        """Run a stage; return whether it passed, its fault noted where it did not."""
        self.report(stage)
        try:
            with _own_warnings_off():
                call()
        except _NotHere as error:
            self.unchecked.append(f"{stage} not tried: {error}")
            return False
        except (Exception, SystemExit) as error:  # a stranger's plugin may raise anything
            self.faults.append(f"{stage}: {self._said(error)}")
            return False
        self.checked.append("two training steps" if stage == "training" else stage)
        return True

    def _said(self, error: BaseException) -> str:
        """Return a fault in one line that names the file it is in."""
        text = (str(error).strip() or "no message").splitlines()[0]
        if isinstance(error, LongtakeError | AssertionError):
            try:
                label = plugin_label(self.plugin.load())
            except Exception:  # what does not load is the fault, and names its place
                return text
            file = label.rpartition("(")[2].rstrip(")")
            text = text.removeprefix(f"{label}: ")
            return text if file in text else f"{text} [{file}]"
        found = plugin_error(error) if isinstance(error, Exception) else None
        return str(found) if found else f"{type(error).__name__}: {text}"

    @property
    def _spec(self) -> PluginSpec:
        """The plugin's spec, as it stands in the experiment or alone."""
        if self.alone is not None:
            return self.alone
        (spec,) = {s for s in specs_of(self.experiment) if type(s) is self.plugin.spec}
        return spec

    def _contract(self) -> None:
        kind, spec = self.plugin.kind, self._spec
        if kind == "backbone":
            assert isinstance(spec, BackboneSpec)
            model = self.plugin.load().load(spec, seed=0)
            self.unchecked.extend(check_backbone(model, spec=spec))
        elif kind == "compressor":
            cls = self.plugin.load()
            reads_pixels = cls.needs(spec).pixels
            codec = self.experiment.backbone.codec if reads_pixels else None
            check_compressor(cls, spec, codec=codec)
        elif kind in ("codec", "text_encoder"):
            made = build(spec)
            if not made.available_offline:
                raise _NotHere("its weights are not here")
            if kind == "text_encoder":
                check_text_encoder(made)
            else:  # of no weights, where it could have some, they are random
                check_codec(made, trained=getattr(spec, "weights", "") is not None)
        elif kind == "masker":
            check_masker(build(spec))
        else:
            metric = build(spec)
            if metric.missing():
                raise _NotHere(f"it needs {metric.missing()}")
            check_metric(metric)

    def _not_here(self) -> str:
        """Return what the experiment needs that is not on this machine; "" where nothing is."""
        backbone = self.experiment.backbone
        for spec in (backbone.codec, backbone.text_encoder, *self.experiment.metrics):
            try:
                if isinstance(spec, MetricSpec):
                    if build(spec).missing():
                        return f"metric {_name(spec)} needs {build(spec).missing()}"
                elif not build(spec).available_offline:
                    return (
                        f"the weights of {spec.kind.replace('_', ' ')} {_name(spec)} are not here"
                    )
            except Exception:  # of a stranger's plugin; the next stages say what it is
                return ""
        return ""

    def _cache(self, videos: Path, store: Path) -> None:
        for seed in range(CLIPS):
            write_video(videos / f"clip-{seed}.mp4", _moving(seed), FPS)
        needs = all_needs(self.experiment)
        device = torch.device("cpu")
        cache(self.experiment, videos, store, rates=needs.rates, pixels=True, device=device)

    def _setup(self, run: Path, store: Path) -> MeasureSetup:
        model = attrs.evolve(load_run(run), experiment=self.experiment)
        return MeasureSetup.build(model, Store.open(store))

    def _measure(self, run: Path, store: Path) -> None:
        setup = self._setup(run, store)
        measure(setup, run=str(run))

    @torch.no_grad()
    def _retriever_contract(self, run: Path, store: Path) -> None:
        setup, spec = self._setup(run, store), self._spec
        scene = clip_scene(setup, setup.records()[0])
        check_retriever(build_retriever(spec), scene)  # type: ignore[arg-type]


@contextmanager
def _own_warnings_off() -> Iterator[None]:
    """Keep longtake's own warnings back: they are of the small experiment, not of the plugin."""
    logger = logging.getLogger("longtake")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def specs_of(value: Any) -> Iterator[PluginSpec]:
    """Yield the specs of plugins in an experiment, those in others too."""
    if isinstance(value, PluginSpec):
        yield value
    if isinstance(value, tuple):
        for member in value:
            yield from specs_of(member)
    elif attrs.has(type(value)):
        for attribute in attrs.fields(type(value)):
            yield from specs_of(getattr(value, attribute.name))


def _name(spec: PluginSpec) -> str:
    return registry().find(spec).name


def _moving(seed: int) -> Iterator[Pixels]:
    """Yield the frames of a square that moves over a gradient."""
    random, (rows, columns) = np.random.default_rng(seed), SIZE
    ramp = np.broadcast_to(np.linspace(0, 160, columns)[None, :, None], (rows, columns, 3))
    colour, top = random.integers(60, 255, 3), int(random.integers(0, rows - 20))
    for index in range(round(SECONDS * FPS)):
        frame = ramp.astype(np.uint8).copy()
        left = (4 * index) % (columns - 20)
        frame[top : top + 20, left : left + 20] = colour
        yield frame
