"""One experiment on every backbone, by one changed value, through the program's own verbs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from attrs import frozen
from safetensors.torch import load_file

from longtake.core.train.checkpoint import checkpoints

from .every_backbone import PIPELINES, Pipeline
from .small import write_clips
from .test_cli import run
from .train.runs import tensors

EXPERIMENT = """
from attrs import evolve
from longtake.core.experiment import CacheSpec, MeasureSpec
from longtake.plugins.specs import Flow, Psnr, Upsample
from tests.small import RATE, small

EXPERIMENT = evolve(
    small(
        steps=2, batch=2, seconds=(0.5, 1.0), trains="lora", checkpointing=True,
        save_every=1, gain_every=2,
    ),
    retrievers=(Flow(steps=1), Upsample(rate=RATE)),
    metrics=(Psnr(),),
    cache=CacheSpec(area=32 * 48, min_seconds=0.5),
    measure=MeasureSpec(seconds=0.5, long_seconds=0.0, draws=1),
)
"""


@frozen(kw_only=True)
class Chain:
    """A folder with the experiment, videos, a pipeline, and a store that was cached with it."""

    root: Path
    pipeline: Pipeline

    @property
    def videos(self) -> Path:
        return self.root.parent / "videos"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def does(self, verb: str, *words: object, sets: Sequence[str] = ()) -> str:
        """Do a verb of the experiment on this backbone, and give what it prints."""
        code, out, err = self.tries(verb, *words, sets=sets)
        assert code == 0, err
        return out

    def tries(self, verb: str, *words: object, sets: Sequence[str] = ()) -> tuple[int, str, str]:
        changes = [word for text in (self.pipeline.change, *sets) for word in ("--set", text)]
        return run(verb, self.root.parent / "mine.py", *words, *changes)

    def trains(self, name: str, *words: object, sets: Sequence[str] = ()) -> Path:
        out = self.root / name
        self.does("pretrain", "--data", self.store, "--out", out, *words, sets=sets)
        return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("every")
    write_clips(root / "videos", seeds=(1, 2), seconds=1.2)
    (root / "videos" / "clip-1.txt").write_text("a cat walks")
    (root / "mine.py").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[1]))
        patch.setattr("longtake.core.data.margins.SIDE", 16)  # small is fast
        yield root


@pytest.fixture(scope="module")
def chains(place: Path) -> dict[str, Chain]:
    return {}


def chain(chains: dict[str, Chain], place: Path, name: str) -> Chain:
    """The chain of a backbone, cached when it is first asked for."""
    if name not in chains:
        root = place / name
        made = Chain(root=root, pipeline=PIPELINES[name](root / "pipeline"))
        root.mkdir(exist_ok=True)
        said = made.does("cache", "--videos", made.videos, "--out", made.store)
        assert "2 cached, 0 kept, 0 not used" in said
        chains[name] = made
    return chains[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_every_verb_runs(place: Path, chains: dict[str, Chain], name: str) -> None:
    at = chain(chains, place, name)
    shown = json.loads(at.does("show", "--json"))
    assert shown["experiment"]["backbone"]["type"] == name
    assert shown["experiment"]["backbone"]["weights"] == at.pipeline.spec.weights
    first = at.trains("run", sets=["train.steps=1"])
    assert [path.name for path in checkpoints(first)] == ["checkpoint-1"]
    assert at.trains("run", "--resume", "latest") == first
    alike(first, at.trains("whole"))
    moved = load_file(checkpoints(first)[-1] / "lora.safetensors")
    assert all(bool(x.any()) for x in moved.values()), "LoRA begins at zero, and all of it learns"
    asked_back(at, first)
    measured(at, first)
    exported(at, first)


def alike(a: Path, b: Path) -> None:
    """Stopped and resumed is never stopped, to the bit: weights and optimizer."""
    one, two = (tensors(checkpoints(run)[-1]) for run in (a, b))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def asked_back(at: Chain, done: Path) -> None:
    out, record = done / "frames", Store.open(at.store).records[0]
    code, said, err = run("retrieve", done, at.videos / "clip-1.mp4", "--at", "0,0.5", "--out", out)
    assert code == 0 and "tokens compressed to" in said, err
    stride = at.pipeline.spec.codec.stride
    wanted = (record.width * stride.width, record.height * stride.height)
    shown = [Image.open(path) for path in out.glob("*-retrieved.png")]
    assert [image.size for image in shown] == [wanted, wanted]


def measured(at: Chain, done: Path) -> None:
    code, _, err = run("measure", done, "--data", at.store)
    assert code == 0, err
    found = json.loads((done / "measure" / "measure.json").read_text())
    figures = {row["name"]: row["unmasked"]["psnr"]["mean"] for row in found["retrievers"]}
    assert {"ceiling", "flow", "upsample"} <= figures.keys()
    assert all(0 < figure < 60 for figure in figures.values()), figures
    assert (done / "measure" / "report.html").stat().st_size > 10_000


def exported(at: Chain, done: Path) -> None:
    """All layouts are written, and the folder's own pipeline takes diffusers'."""
    for layout in ("diffusers", "comfyui", "kohya"):
        code, _, err = run("export", done, "--to", layout, "--out", done / f"{layout}.safetensors")
        assert code == 0, err
    if not (at.pipeline.folder / "model_index.json").exists():
        return
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(at.pipeline.folder, local_files_only=True)
    pipe.load_lora_weights(done, weight_name="diffusers.safetensors")
    adapters = load_file(checkpoints(done)[-1] / "lora.safetensors")
    loaded = {f"transformer.{n}".replace(".default_0.", "."): x for n, x in
              pipe.transformer.named_parameters() if "lora_" in n}  # fmt: skip
    assert loaded.keys() == adapters.keys()
    assert all(torch.equal(loaded[n].float(), x.float()) for n, x in adapters.items())


VARIANTS = {
    "wan21-1.3b": ("backbone.rotary=averaged", "compressor.features=true"),
    "wan22-5b": ("backbone.attention=isolated",),
    "wan22-14b": ("backbone.expert=both", "compressor.features=true"),
    "hunyuan": ("backbone.attention=isolated-causal", "backbone.memory_time=0"),
    "tiny-hunyuan": ("backbone.attention=isolated", "backbone.memory_time=0",
                     "backbone.rotary=averaged"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_other_ways_of_memory_need_no_other_store(
    place: Path, chains: dict[str, Chain], name: str, tmp_path: Path
) -> None:
    at, sets = chain(chains, place, name), [*VARIANTS[name], "train.gain_every=1"]
    done = at.trains("variant", sets=[*sets, "train.steps=1"])
    assert at.trains("variant", "--resume", "latest", sets=sets) == done
    alike(done, at.trains("variant-whole", sets=sets))
    asked_back(at, done)
    code, said, err = run("export", done, "--to", "kohya", "--out", tmp_path / "x.safetensors")
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == (
        ["x.high.safetensors", "x.low.safetensors", "x.memory.safetensors"]
        if "backbone.expert=both" in sets
        else ["x.safetensors"]
    )
