"""Bad input for the published backbones: one clear line, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from attrs import frozen
from safetensors.torch import load_file, save_file
from torch import Tensor

from .every_backbone import PIPELINES, Pipeline
from .program import DDP, FSDP, ROOT, pair, run
from .small import write_clips

EXPERIMENT = """
from tests.small import small
EXPERIMENT = small(steps=2, seconds=(0.5, 1.0), trains="lora", save_every=1, gain_every=1)
"""
A, B = (
    "transformer.blocks.0.attn1.to_q.lora_A.weight",
    "transformer.blocks.0.attn1.to_q.lora_B.weight",
)
COMFYUI = "diffusion_model.blocks.0.self_attn.q"
Tensors = dict[str, Tensor]


@frozen(kw_only=True)
class Place:
    """Pipelines, a store and a run of Wan 2.1, and an empty folder for what must not come to be."""

    root: Path
    pipelines: dict[str, Pipeline]

    def does(self, verb: str, *words: object, name: str = "wan21-1.3b", sets: Sequence[str] = ()):
        changes = [x for text in (self.pipelines[name].change, *sets) for x in ("--set", text)]
        return run(verb, self.root / "mine.py", *words, *changes)

    def pretrains(self, out: Path, **more: Any) -> tuple[int, str, str]:
        return self.does("pretrain", "--data", self.root / "store", "--out", out, **more)

    @property
    def checkpoint(self) -> Path:
        return self.root / "run" / "checkpoint-2"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("bad")
    write_clips(root / "videos", seeds=(1, 2), seconds=1.2)
    (root / "mine.py").write_text(EXPERIMENT)
    names = ("wan21-1.3b", "wan22-14b", "hunyuan")
    at = Place(root=root, pipelines={name: PIPELINES[name](root / name) for name in names})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        patch.setattr("longtake.core.cache.job.SIDE", 16)  # small is fast
        short = ("cache.area=1536", "cache.min_seconds=0.5")
        code, _, err = at.does(
            "cache", "--videos", root / "videos", "--out", root / "store", sets=short
        )
        assert code == 0, err
        code, _, err = at.pretrains(root / "run", sets=short)
        assert code == 0, err
        yield at


def refused(answer: tuple[int, str, str], words: str, out: Path) -> None:
    """Exit 2, one line that says `words`, and nothing at `out` or beside it."""
    code, said, err = answer
    assert code == 2 and said == "", (code, said, err)
    assert err.count("\n") == 1 and words in err, err
    assert not out.exists() and not list(out.parent.glob(".*")), sorted(out.parent.iterdir())


WHERE = {
    "no such place": ("/nowhere/at/all", "no such folder or file"),
    "too long": ("x" * 300, "File name too long"),
    "of no one": ("~nobody-here/x", "Could not determine home directory"),
    "a pickle of the hub": ("org/name/file.pt", "are pickled"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WHERE)
def test_places_that_cannot_be(place: Place, tmp_path: Path, case: str) -> None:
    where, words = WHERE[case]
    out = tmp_path / "out"
    refused(place.pretrains(out, sets=[f"backbone.weights={where}"]), words, out)
    beside = place.pretrains(out, sets=[f"backbone.loras={json.dumps([where])}"])
    assert beside[0] == 2 and beside[2].count("\n") == 1, beside
    for part in ("codec", "text_encoder"):
        answer = place.does(
            "cache", "--videos", place.root / "videos", "--out", out,
            sets=[f"backbone.{part}.weights={where}"],
        )  # fmt: skip
        assert answer[0] == 2 and answer[2].count("\n") == 1, answer
        assert not out.exists()


@pytest.mark.slow
def test_a_home_is_found_by_all_three(place: Place, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(place.root))
    sets = [f"backbone.{part}weights=~/wan21-1.3b" for part in ("", "codec.", "text_encoder.")]
    words = ("--videos", place.root / "videos", "--out", tmp_path / "store")
    short = ["cache.area=1536", "cache.min_seconds=0.5"]
    assert place.does("cache", *words, sets=[*sets, *short])[0] == 0
    lora = f'backbone.loras=["~/run/{place.checkpoint.name}/lora.safetensors@0.5"]'
    code, _, err = place.pretrains(tmp_path / "out", sets=[*sets, lora])
    assert code == 0, err


@pytest.mark.parametrize(
    ("asked", "given", "words"),
    [
        ("wan22-14b", "wan21-1.3b", "found a pipeline of one transformer, as Wan 2.1 has"),
        ("wan21-1.3b", "wan22-14b", "found a pipeline of two transformers"),
        ("hunyuan", "wan21-1.3b", "are of WanTransformer3DModel, not of HunyuanVideo"),
    ],
)
def test_another_model_of_the_same_shapes(
    place: Place, tmp_path: Path, asked: str, given: str, words: str
) -> None:
    """Wan 2.1 14B and an expert of Wan 2.2 14B differ in no shape, only in their pipelines."""
    from longtake.core.errors import UserError
    from longtake.core.registry import registry

    spec = place.pipelines[asked].but(weights=str(place.root / given)).spec
    with pytest.raises(UserError, match=words) as caught:
        registry().load(spec).load(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verb", ["show", "pretrain"])
def test_blocks_that_cut_tokens_are_refused_at_once(
    place: Place, tmp_path: Path, verb: str
) -> None:
    sets = [
        "backbone.attention=isolated-causal",
        "backbone.memory_time=0",
        "backbone.cache_block=3",
    ]
    out = tmp_path / "out"
    words = "backbone.cache_block 3 is no multiple of the time rate of 2x2x2"
    answer = place.does(verb, sets=sets) if verb == "show" else place.pretrains(out, sets=sets)
    refused(answer, words, out)


def _pair(**changes: Tensor) -> Tensors:
    pair = {A: torch.ones(2, 24), B: torch.ones(24, 2)}
    return pair | {{"a": A, "b": B}[key]: tensor for key, tensor in changes.items()}


def _comfyui(alpha: Tensor) -> Tensors:
    named = {A: f"{COMFYUI}.lora_A.weight", B: f"{COMFYUI}.lora_B.weight"}
    return {named[key]: tensor for key, tensor in _pair().items()} | {f"{COMFYUI}.alpha": alpha}


def _says(**metadata: Any) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in metadata.items()}


def _peft(**config: Any) -> dict[str, str]:
    return _says(lora_adapter_metadata={f"transformer.{k}": v for k, v in config.items()})


LORAS: dict[str, tuple[Tensors, dict[str, str] | None, str]] = {
    "empty": ({}, None, "is empty"),
    "rank 0": (_pair(a=torch.ones(0, 24), b=torch.ones(24, 0)), None, "not a matrix of rank"),
    "a number": (_pair(a=torch.tensor(1.0)), None, "not a matrix of rank"),
    "whole numbers": (_pair(a=torch.ones(2, 24, dtype=torch.int8)), None, "is int8"),
    "no numbers": (_pair(a=torch.full((2, 24), torch.nan)), None, "not finite"),
    "another width": (_pair(a=torch.ones(2, 48)), None, "to_q has 24"),
    "two ranks": (_pair(a=torch.ones(1, 24)), None, "does not fit"),
    "A alone": ({A: torch.ones(2, 24)}, None, "A and B go together"),
    "alpha in words": (_pair(), _peft(r=2, lora_alpha="x"), "what its metadata says"),
    "alpha missing": (_pair(), _peft(r=2, lora_alpha=None), "what its metadata says"),
    "bad pattern": (_pair(), _peft(lora_alpha=2, alpha_pattern={"(": 3}), "what its metadata says"),
    "patterns in a list": (_pair(), _peft(lora_alpha=2, alpha_pattern=[1]), "its metadata says"),
    "half of ours": (_pair(), _says(longtake={"lora": {"rank": 2}}), "what its metadata says"),
    "ours of rank 0": (
        _pair(),
        _says(longtake={"lora": {"linears": ["x"], "rank": 0, "alpha": 1, "baked": True}}),
        "what its metadata says",
    ),
    "three alphas": (_comfyui(torch.ones(3)), None, "is (3,), not one number"),
    "no alpha": (_comfyui(torch.tensor(torch.nan)), None, "self_attn.q.alpha is nan"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", LORAS)
def test_loras_that_are_none(place: Place, tmp_path: Path, case: str) -> None:
    tensors, metadata, words = LORAS[case]
    file, out = tmp_path / "files" / "a lora.safetensors", tmp_path / "out"
    file.parent.mkdir()
    save_file(tensors, file, metadata=metadata)
    refused(place.pretrains(out, sets=[f"backbone.loras={json.dumps([str(file)])}"]), words, out)


@pytest.mark.slow
def test_a_vae_whose_numbers_are_missing(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(place.root / "wan21-1.3b" / "vae", folder / "vae")
    config = folder / "vae" / "config.json"
    numbers = json.loads(config.read_text())
    for change, words in (
        ({"latents_mean": None}, "latents_mean has 0 values for 16 channels"),
        ({"latents_std": [0.0] * 16}, "latents_std holds 0, not above 0"),
    ):
        config.write_text(json.dumps(numbers | change))
        answer = place.does(
            "cache", "--videos", place.root / "videos", "--out", tmp_path / "out",
            sets=[f"backbone.codec.weights={folder}", "cache.min_seconds=0.5"],
        )  # fmt: skip
        assert answer[0] == 2 and words in answer[2].splitlines()[-1], answer


def test_a_text_encoder_that_transformers_refuses(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(place.root / "wan21-1.3b" / part, folder / part)
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": "two"}))
    code, _, err = place.does(
        "cache", "--videos", place.root / "videos", "--out", tmp_path / "out",
        sets=[f"backbone.text_encoder.weights={folder}"],
    )  # fmt: skip
    assert code == 2 and "cannot be read: Validation error" in err.splitlines()[-1], err


Damage = Callable[[Path], Any]


def _spec(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(run_: Path) -> None:
        spec = json.loads((run_ / "spec.json").read_text())
        change(spec["experiment"]["backbone"])
        (run_ / "spec.json").write_text(json.dumps(spec))

    return damage


def _file(name: str, metadata: str) -> Damage:
    def damage(run_: Path) -> None:
        path = run_ / "checkpoint-2" / name
        save_file(load_file(path), path, metadata={"longtake": metadata})

    return damage


RUNS: dict[str, tuple[Damage, str]] = {
    "a newer version": (_spec(lambda b: b.update(later=1)), "spec.json: backbone.later: unknown"),
    "another backbone": (_spec(lambda b: b.update(type="wan30")), "spec.json: backbone.type: unkn"),
    "no header": (_file("memory.safetensors", "{"), "its header is no JSON"),
    "a header of another kind": (_file("memory.safetensors", "[]"), "its header is no JSON object"),
}


@pytest.mark.parametrize("case", RUNS)
def test_runs_that_cannot_be_read(place: Place, tmp_path: Path, case: str) -> None:
    damage, words = RUNS[case]
    damaged, out = tmp_path / "damaged run", tmp_path / "out" / "x.safetensors"
    shutil.copytree(place.root / "run", damaged)
    damage(damaged)
    out.parent.mkdir()
    refused(run("export", damaged, "--to", "comfyui", "--out", out), words, out)


def test_an_export_that_stops_leaves_nothing(
    place: Place, tmp_path: Path, monkeypatch: Any
) -> None:
    out, real = tmp_path / "out" / "x.safetensors", safetensors.torch.save_file
    out.parent.mkdir()
    for error, code, words in (
        (OSError(28, "No space left on device"), 2, "No space left"),
        (KeyboardInterrupt(), 130, "stopped"),
    ):
        written: list[Path] = []

        def second(
            tensors: Any, path: Path, *, error: Any = error, written: Any = written, **more: Any
        ):
            written.append(path)
            real(tensors, path, **more)
            if len(written) == 2:
                raise error

        monkeypatch.setattr(safetensors.torch, "save_file", second)
        found = run("export", place.root / "run", "--to", "diffusers", "--out", out)
        assert found[0] == code and words in found[2] and len(written) == 2, found
        assert list(out.parent.iterdir()) == []
    long = out.with_name("x" * 300 + ".safetensors")
    code, _, err = run("export", place.root / "run", "--to", "diffusers", "--out", long)
    assert code == 2 and "File name too long" in err


@pytest.fixture(scope="module")
def one_of_two_experts(place: Place) -> tuple[list[str], dict[str, float]]:
    """A training of both experts, but for its folder, and what one process says of it.

    In some steps and measures each of two processes asks another expert.
    """
    sets = [
        place.pipelines["wan22-14b"].change, "backbone.expert=both", "backbone.boundary=0.95",
        "train.steps=8", "train.batch=4", "train.checkpointing=true", "train.optimizer=adamw",
    ]  # fmt: skip
    changes, store = [x for text in sets for x in ("--set", text)], str(place.root / "experts")
    mine, videos = str(place.root / "mine.py"), str(place.root / "videos")
    short = ("--set", "cache.area=1536", "--set", "cache.min_seconds=0.5")
    assert run("cache", mine, "--videos", videos, "--out", store, *changes, *short)[0] == 0
    words = ["pretrain", mine, "--data", store, "--json", *changes, "--out"]
    return words, json.loads(run(*words, place.root / "one")[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DDP, FSDP])
def test_processes_that_ask_different_experts_end_with_one_loss(
    one_of_two_experts: tuple[list[str], dict[str, float]], tmp_path: Path, kind: tuple[str, ...]
) -> None:
    """None may wait for the other, or move other weights."""
    words, alone = one_of_two_experts
    ended = pair((*words, tmp_path / "two"), tmp_path, *kind)
    assert [one.process.exitcode for one in ended] == [0, 0], [one.err for one in ended]
    two = json.loads(next(one.out for one in ended if one.out.strip()))
    assert two["loss"] == pytest.approx(alone["loss"], abs=1e-4)
    assert two["memory_gain"] == pytest.approx(alone["memory_gain"], abs=1e-3)
