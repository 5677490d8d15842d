"""One experiment on every backbone, by one changed value, through the program's own verbs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file

from longtake.backbones.codecs import vae as vaes
from longtake.backbones.codecs.dct import DctCodec
from longtake.backbones.texts.bytes import ByteEncoder
from longtake.backbones.texts.loading import WeightsEncoder
from longtake.core.cache.cache import cache
from longtake.core.data.store import Store, check_fits
from longtake.core.errors import UserError
from longtake.core.tools import hub
from longtake.core.train.checkpoint import checkpoints
from longtake.core.train.log import Previews
from longtake.core.train.pretrain import pretrain

from .every_backbone import PIPELINES, Pipeline
from .program import run
from .small import RATE, make_store, small, write_clips
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
        # the recipes of large backbones keep no frames, which measuring compares with
        own = (self.pipeline.change, "cache.pixels=true")
        changes = [word for text in (*own, *sets) for word in ("--set", text)]
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
        patch.setattr("longtake.core.cache.job.SIDE", 16)  # small is fast
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
    rows = {row["name"]: row["unmasked"]["figures"]["psnr"] for row in found["retrievals"]}
    figures = {name: row["mean"] for name, row in rows.items()}
    assert {"ceiling", "flow", "upsample"} == figures.keys()
    assert {row["n"] for row in rows.values()} == {2}
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
    if "backbone.expert=both" in sets:  # a run of two models resumes, too
        done = at.trains("variant", sets=[*sets, "train.steps=1"])
        assert at.trains("variant", "--resume", "latest", sets=sets) == done
        alike(done, at.trains("variant-whole", sets=sets))
    else:
        done = at.trains("variant", sets=sets)
    asked_back(at, done)
    code, said, err = run("export", done, "--to", "kohya", "--out", tmp_path / "x.safetensors")
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == (
        ["x.high.safetensors", "x.low.safetensors", "x.memory.safetensors"]
        if "backbone.expert=both" in sets
        else ["x.safetensors"]
    )


@pytest.mark.slow
def test_training_needs_the_transformer_alone(
    place: Path, chains: dict[str, Chain], caplog: pytest.LogCaptureFixture
) -> None:
    """The store says what it was made with; measuring needs the VAE, and no text encoder."""
    at = chain(chains, place, "wan22-5b")
    with Away(at, "vae", "text_encoder", "tokenizer"):
        done = at.trains("alone", sets=["train.gain_every=1"])
        said = [record.getMessage() for record in caplog.records if "pictures" in record.msg]
        assert len(said) == 1 and said[0].endswith("the codec's weights are not on this machine")
        assert_refused(run("measure", done, "--data", at.store), "no VAE is there")
        for change, words in ELSEWHERE.items():
            out = at.root / "refused"
            told = at.tries("pretrain", "--data", at.store, "--out", out, sets=[change])
            assert_refused(told, words)
            assert not out.exists()
    with Away(at, "text_encoder", "tokenizer"):
        assert run("measure", done, "--data", at.store)[0] == 0
        out = at.root / "asked"
        told = run("retrieve", done, at.videos / "clip-1.mp4", "--at", "0", "--out", out)
        assert_refused(told, "no subfolder text_encoder")
        assert not out.exists()
    alike(done, at.trains("together", sets=["train.gain_every=1"]))


ELSEWHERE = {
    "backbone.codec.weights=/no/vae": "was cached with backbone.codec.weights",
    "backbone.codec.dtype=bfloat16": "codec.dtype float32, the experiment has bfloat16",
    "backbone.text_encoder.length=8": "text_encoder.length 16, the experiment has 8",
    "backbone.fps=16": "was cached with fps 24.0",
}


class Away:
    """Folders of a pipeline that are not there for a while."""

    def __init__(self, at: Chain, *parts: str) -> None:
        self.places = {at.pipeline.folder / part: at.root / f"{part}-away" for part in parts}

    def __enter__(self) -> None:
        for here, away in self.places.items():
            here.rename(away)

    def __exit__(self, *_: object) -> None:
        for here, away in self.places.items():
            away.rename(here)


def assert_refused(told: tuple[int, str, str], words: str) -> None:
    code, out, err = told
    said = [line for line in err.splitlines() if line.startswith("longtake: ")]
    assert code == 2 and len(said) == 1 and words in said[0], err + out
    assert "Traceback" not in err


@pytest.mark.slow
def test_nothing_of_the_hub_is_fetched_to_train(
    place: Path, chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache holds the transformer of the repository that the store was made with."""
    base, commit = chain(chains, place, "wan21-1.3b"), "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--me--wan" / "snapshots" / commit
    (snapshot.parent.parent / "refs").mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text(commit)
    shutil.copytree(base.pipeline.folder, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    spec: Any = base.pipeline.spec
    codec, text = (evolve(part, weights="me/wan") for part in (spec.codec, spec.text_encoder))
    pipeline = base.pipeline.but(weights="me/wan", codec=codec, text_encoder=text)
    at = evolve(base, pipeline=pipeline)
    store = tmp_path / "store"
    at.does("cache", "--videos", at.videos, "--out", store)
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.rmtree(snapshot / part)
    asked: list[str] = []
    real = hub.download

    def download(repo: str, patterns: Sequence[str], label: str = "weights") -> Path:
        asked.extend(patterns)
        return real(repo, patterns, label)

    monkeypatch.setattr(hub, "download", download)
    words = ("pretrain", "--data", store, "--out", tmp_path / "run")
    at.does(*words, sets=["train.steps=1"])
    assert any("transformer" in pattern for pattern in asked)
    assert not [pattern for pattern in asked if "vae" in pattern or "text" in pattern]
    told = base.tries("pretrain", "--data", store, "--out", tmp_path / "other")
    assert_refused(told, "was cached with text umt5-16 me/wan")


def broken(at: Chain, folder: Path, *missing: str, **replaced: Path) -> str:
    """A copy of the pipeline without some parts, or with others in their place."""
    shutil.copytree(at.pipeline.folder, folder)
    for part in (*missing, *replaced):
        shutil.rmtree(folder / part)
    for part, other in replaced.items():
        shutil.copytree(other, folder / part)
    return str(folder)


@pytest.mark.slow
def test_a_folder_that_lacks_something_is_one_line(
    place: Path, chains: dict[str, Chain], tmp_path: Path
) -> None:
    at, other = (chain(chains, place, name) for name in ("wan22-14b", "hunyuan"))
    theirs = other.pipeline.folder
    no_vae = broken(at, tmp_path / "no-vae", "vae")
    no_text = broken(at, tmp_path / "no-text", "text_encoder")
    other_vae = broken(at, tmp_path / "other-vae", vae=theirs / "vae")
    for field, weights, words in (
        ("codec", no_vae, "no VAE is there"),
        ("codec", other_vae, "are of AutoencoderKLHunyuanVideo, not of AutoencoderKLWan"),
        ("text_encoder", no_text, "have no subfolder text_encoder"),
        ("text_encoder", str(theirs), "holds a model of llama, not of umt5"),
    ):
        out, sets = tmp_path / "store", [f"backbone.{field}.weights={weights}"]
        assert_refused(at.tries("cache", "--videos", at.videos, "--out", out, sets=sets), words)
        assert not out.exists()
    for change, words in (
        ({"missing": ("transformer",)}, "are a pipeline without transformer/"),
        ({"transformer": theirs / "transformer"}, "are of HunyuanVideoTransformer3DModel, not of"),
    ):
        lost = change.pop("missing", ())
        folder = broken(at, tmp_path / f"other-{len(words)}", *lost, **change)
        refused(at, tmp_path / "run", [f"backbone.weights={folder}"], words)
    alone = broken(at, tmp_path / "one-expert", "transformer_2")
    refused(at, tmp_path / "run", [f"backbone.weights={alone}", "backbone.expert=both"], "_2/: its")
    told = other.tries("pretrain", "--data", at.store, "--out", tmp_path / "run")
    assert_refused(told, "was cached with codec wan-vae-2.1-")
    assert not (tmp_path / "run").exists()


def refused(at: Chain, out: Path, sets: list[str], words: str) -> None:
    assert_refused(at.tries("pretrain", "--data", at.store, "--out", out, sets=sets), words)
    assert not out.exists()


@pytest.mark.slow
def test_text_encoder_and_vae_are_never_loaded_together(
    place: Path, chains: dict[str, Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts first, then the VAE; training loads it once, at its first picture."""
    at, order = chain(chains, place, "wan21-1.3b"), []
    load, embed, release = vaes.load_vae, WeightsEncoder.encode, WeightsEncoder.release

    def loads(*given: Any) -> Any:
        order.append("vae")
        return load(*given)

    def embeds(self: Any, prompts: Sequence[str]) -> Any:
        order.append("text")
        return embed(self, prompts)

    def releases(self: Any) -> None:
        order.extend(["free"] if self._loaded else [])
        release(self)

    monkeypatch.setattr(vaes, "load_vae", loads)
    monkeypatch.setattr(WeightsEncoder, "encode", embeds)
    monkeypatch.setattr(WeightsEncoder, "release", releases)
    at.does("cache", "--videos", at.videos, "--out", tmp_path / "store")
    assert order == ["text", "free", "vae", "vae"], "the first to measure its margin"
    order.clear()
    at.trains("pictures", sets=["train.steps=3", "train.gain_every=1"])
    assert order == ["vae"]
    order.clear()
    at.trains("no-pictures", sets=["train.steps=1", "train.batch=1"])
    assert order == [], "a batch of one has no memory_gain, and so no picture"


def test_weights_that_are_not_here_are_known_by_their_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = small()
    place = make_store(tmp_path, experiment, seeds=(1,))
    store, codec = Store.open(place), experiment.backbone.codec
    assert store.header["specs"]["codec"] == {"type": "dct", "channels": 16}
    check_fits(experiment, store, [RATE])
    for cls in (DctCodec, ByteEncoder):
        monkeypatch.setattr(cls, "available_offline", False)
        monkeypatch.setattr(cls, "identity", property(lambda self: pytest.fail("asked")))
    check_fits(experiment, store, [RATE])
    other = evolve(experiment.backbone, codec=evolve(codec, channels=48))
    with pytest.raises(UserError, match="codec.channels 16, the experiment has 48") as said:
        check_fits(evolve(experiment, backbone=other), store, [RATE])
    assert "\n" not in str(said.value)
    longer = evolve(experiment.backbone.text_encoder, length=9)
    other = evolve(experiment.backbone, text_encoder=longer)
    with pytest.raises(UserError, match="backbone.text_encoder.length 8, the experiment has 9"):
        check_fits(evolve(experiment, backbone=other), store, [RATE])
    store.header["specs"]["codec"] = {"type": "of-another-plugin", "channels": 16}
    with pytest.raises(UserError, match="codec.type of-another-plugin, the experiment has dct"):
        check_fits(experiment, store, [RATE])
    del store.header["specs"]
    for cls in (DctCodec, ByteEncoder):
        monkeypatch.setattr(cls, "identity", "another")
    with pytest.raises(UserError, match="was cached with codec dct"):  # a store that says nothing
        check_fits(experiment, store, [RATE])


@pytest.mark.slow
def test_pictures_that_cannot_be_drawn_end_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = small(steps=3, gain_every=1, trains="lora")
    store = make_store(tmp_path, experiment, seeds=(1, 2))
    shown: list[int] = []
    ready = Previews.ready
    monkeypatch.setattr(Previews, "ready", lambda self: (shown.append(1), ready(self))[1])

    def fails(self: Any, *_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 GiB")

    monkeypatch.setattr(DctCodec, "decode", fails)
    result = pretrain(experiment, store, tmp_path / "run")
    assert result.step == 3 and len(shown) > 1
    said = [record.getMessage() for record in caplog.records]
    pictures = [text for text in said if "pictures" in text]
    assert pictures == ["no pictures of retrieved frames: CUDA out of memory."]
    floors = evolve(experiment, retrievers=experiment.retrievers[1:])
    assert pretrain(floors, store, tmp_path / "floors").step == 3
    assert "none of its retrievers reads memory" in caplog.records[-1].getMessage()


def test_a_disk_that_will_not_hold_the_rest_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, notes = small(), []
    videos = write_clips(tmp_path / "videos")

    def caches(out: Path) -> int:
        notes.clear()
        done = cache(
            experiment, videos, out, rates=frozenset({RATE}), pixels=True,
            device=torch.device("cpu"), progress=lambda done, total, note: notes.append(note),
        )  # fmt: skip
        return sum(path.stat().st_size for path in (done.store / "clips").iterdir()) // 3

    size = caches(tmp_path / "first")
    assert len(notes) > 3 and not any("the rest needs" in note for note in notes)
    usage = shutil.disk_usage(tmp_path)._replace(free=int(1.5 * size))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr("longtake.core.cache.cache.GIGABYTE", float(size))
    caches(tmp_path / "second")
    said = [note for note in notes if "the rest needs about" in note]
    assert len(said) == 1, "with one of three done; one more fits"
    assert "2.0 GB of 1.5 GB free" in said[0]
