"""`longtake export` as a user meets it: files that others read, and that we read back."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longtake.backbones.wan.experts import Wan22MoeBackbone
from longtake.backbones.wan.specs import Wan22Moe14B
from longtake.core.cli.options import find_run
from longtake.core.config import to_json
from longtake.core.errors import UserError
from longtake.core.experiment import Experiment
from longtake.core.export import export, without_local_paths
from longtake.core.model import Model, build_model
from longtake.core.tools.files import part_path, write_json
from longtake.core.train.checkpoint import (
    load_encoder,
    load_run,
    lora_file,
    memory_file,
    save_model,
)
from longtake.core.train.pretrain import resolved_spec

from .program import run
from .small import small, write_clips


def make_run(place: Path, experiment: Experiment) -> Model:
    """A run of one checkpoint whose weights are anything but fresh, without training."""
    model = build_model(experiment, adapters=True)
    generator = torch.Generator().manual_seed(4)
    for weight in (*model.encoder.parameters(), *model.backbone.adapters().values()):
        torch.nn.init.normal_(weight.data, std=0.3, generator=generator)
    (place / "checkpoint-3").mkdir(parents=True)
    save_model(place / "checkpoint-3", model)
    write_json(place / "spec.json", resolved_spec(experiment))
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    return make_run(place / "lora", small(trains="lora"))


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["longtake"])
    return found


def read_back(model: Model, lora: Path, memory: Path) -> None:
    """The files give the model's own tensors to models that are fresh."""
    fresh = build_model(model.experiment, adapters=True)
    fresh.backbone.load_adapters(lora)
    fit = fresh.backbone.fit()
    load_encoder(memory, fresh.encoder, width=fit.geometry.width, digest=fit.digest)
    for name, weight in model.backbone.adapters().items():
        assert torch.equal(fresh.backbone.adapters()[name], weight), name
    for name, weight in model.encoder.state_dict().items():
        assert torch.equal(fresh.encoder.state_dict()[name], weight), name


@pytest.mark.parametrize("layout", ["comfyui", "kohya"])
def test_a_bundle_loads_back(place: Path, model: Model, layout: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "x.safetensors"
    code, said, _ = run("export", place / "lora", "--to", layout, "--out", out, "--json")
    told = json.loads(said)
    assert code == 0 and told["files"] == {"bundle": str(out)} and told["rates"] == ["2x2x2"]
    assert told["lora"] == {"layout": layout, "rank": 2, "alpha": 2.0} and told["base"] is None
    read_back(model, out, out)
    facts = header(out)
    assert facts["experiment"] == to_json(model.experiment) and facts["step"] == 3
    assert (facts["backbone"], facts["stage"]) == ("tiny-wan", "pretrain")
    assert facts["fit"] == model.backbone.fit().digest and len(facts["hash"]) == 16
    prefixes = {name.partition(".")[0].partition("_blocks")[0] for name in load_file(out)}
    assert prefixes == {"memory", "diffusion_model" if layout == "comfyui" else "lora_unet"}
    again = tmp_path / "again.safetensors"
    assert run("export", place / "lora", "--to", layout, "--out", again)[0] == 0
    assert header(again) == facts  # of which the hash is of all tensors


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["comfyui", "diffusers"])
def test_an_export_is_a_run(place: Path, model: Model, layout: str, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    assert run("export", place / "lora", "--to", layout, "--out", out)[0] == 0
    assert (tmp_path / "x.memory.safetensors").exists() == (layout == "diffusers")
    loaded = load_run(find_run(str(out)))
    assert loaded.experiment == model.experiment
    for name, weight in model.backbone.adapters().items():
        assert torch.equal(loaded.backbone.adapters()[name], weight), name
    for name, weight in model.encoder.state_dict().items():
        assert torch.equal(loaded.encoder.state_dict()[name], weight), name
    write_clips(tmp_path, seeds=(1,))
    frames = tmp_path / "frames"
    words = ("retrieve", out, tmp_path / "clip-1.mp4", "--at", "0.5", "--steps", "1")
    assert run(*words, "--out", frames)[0] == 0 and (frames / "strip.png").exists()
    code, _, said = run("export", out, "--to", layout, "--out", tmp_path / "y.safetensors")
    assert code == 2 and "exported already" in said
    code, _, said = run("retrieve", place / "lora/checkpoint-3/memory.safetensors", *words[2:])
    assert code == 2 and "no file that `longtake export` wrote" in said


def test_diffusers_has_the_lora_alone(place: Path, model: Model, tmp_path: Path) -> None:
    from diffusers import WanPipeline, WanTransformer3DModel

    out, memory = tmp_path / "x.safetensors", tmp_path / "x.memory.safetensors"
    code, said, _ = run(
        "export", place / "lora" / "checkpoint-3", "--to", "diffusers", "--out", out
    )
    assert code == 0 and "diffusers refuses" in said and "rank 2, alpha 2" in said
    assert sorted(tmp_path.iterdir()) == [memory, out]
    assert all(name.startswith("memory.") for name in load_file(memory))
    state = WanPipeline.lora_state_dict(tmp_path, weight_name=out.name)
    assert set(state) == {f"transformer.{name}" for name in model.backbone.adapters()}
    read_back(model, out, memory)
    code, said, _ = run(
        "export", place / "lora", "--to", "diffusers", "--out", out, "--bundle", "--json"
    )
    assert code == 0 and set(json.loads(said)["files"]) == {"bundle"}
    read_back(model, out, out)
    twin = WanTransformer3DModel.from_config(dict(model.backbone.config))
    pipe = WanPipeline(None, None, None, None, transformer=twin)
    with pytest.raises(ValueError, match="LoRA"):  # why there are two files
        pipe.load_lora_weights(tmp_path, weight_name=out.name)
    out = tmp_path / "y.safetensors"
    assert run("export", place / "lora", "--to", "kohya", "--split", "--out", out)[0] == 0
    with pytest.raises(UserError, match="is of another encoder"):
        fit = model.backbone.fit()
        load_encoder(out, model.encoder, width=fit.geometry.width, digest=fit.digest)


def test_numbers_may_be_narrower(place: Path, model: Model, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    words = ("export", place / "lora", "--to", "kohya", "--out", out, "--dtype", "bfloat16")
    assert run(*words)[0] == 0
    tensors = load_file(out)
    alphas = {x.dtype for name, x in tensors.items() if name.endswith(".alpha")}
    assert alphas == {torch.float32}
    assert {x.dtype for n, x in tensors.items() if not n.endswith(".alpha")} == {torch.bfloat16}
    fresh = build_model(model.experiment, adapters=True).backbone
    fresh.load_adapters(out)
    for name, weight in model.backbone.adapters().items():
        assert torch.equal(fresh.adapters()[name], weight.bfloat16().float())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("trained_in", ["float32", "bfloat16"])
def test_alpha_goes_into_b_before_it_is_narrowed(
    tmp_path: Path, dtype: str | None, trained_in: str
) -> None:
    lora = small(trains="lora")
    adapter = evolve(lora.train.adapter, rank=3, alpha=7.0, dtype=trained_in)
    experiment = evolve(lora, train=evolve(lora.train, adapter=adapter))
    adapters = make_run(tmp_path / "run", experiment).backbone.adapters()
    export(tmp_path / "run", "diffusers", tmp_path / "x.safetensors", dtype=dtype)
    found = load_file(tmp_path / "x.safetensors")
    assert len(found) == len(adapters)
    for name, x in adapters.items():
        wanted = (x.detach().double() * (7 / 3 if "lora_B" in name else 1.0)).float()
        wanted = wanted.to(getattr(torch, dtype or trained_in))
        assert torch.equal(found[f"transformer.{name}"], wanted), name
    assert header(tmp_path / "x.safetensors")["lora"]["alpha"] == 7.0


def test_a_type_that_cannot_hold_a_weight_is_refused(tmp_path: Path) -> None:
    model = make_run(tmp_path / "run", small(trains="lora"))
    with torch.no_grad():
        next(iter(model.backbone.adapters().values())).fill_(1e6)
    save_model(tmp_path / "run" / "checkpoint-3", model)
    with pytest.raises(UserError, match="--dtype float16 cannot hold .*: take float32 or bfloat16"):
        export(tmp_path / "run", "diffusers", tmp_path / "x.safetensors", dtype="float16")
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_dit_that_was_trained_whole_is_named(place: Path, tmp_path: Path) -> None:
    made = make_run(place / "all", small(trains="all"))
    out = tmp_path / "x.safetensors"
    code, said, _ = run("export", place / "all", "--to", "comfyui", "--out", out)
    base = place / "all" / "checkpoint-3" / "backbone"
    assert code == 0 and f"diffusers checkpoint, {base}" in said
    assert all(name.startswith("memory.") for name in load_file(out)) and "lora" not in header(out)
    fit = made.backbone.fit()
    load_encoder(out, made.encoder, width=fit.geometry.width, digest=fit.digest)
    make_run(place / "base", evolve(small(trains="all"), compressors=()))
    code, _, err = run(
        "export", place / "base", "--to", "kohya", "--out", tmp_path / "y.safetensors"
    )
    assert code == 2 and "no encoder and no LoRA" in err and "diffusers checkpoint" in err


def test_a_base_with_lora_has_no_encoder(place: Path, tmp_path: Path) -> None:
    make_run(place / "lora-base", evolve(small(trains="lora"), compressors=()))
    out = tmp_path / "x.safetensors"
    code, said, _ = run("export", place / "lora-base", "--to", "diffusers", "--out", out, "--json")
    assert code == 0 and json.loads(said)["files"] == {"lora": str(out)}
    assert header(out)["stage"] == "base"


def test_folders_of_this_machine_stay_here() -> None:
    def named(weights: str, *loras: str) -> tuple[str, list[str]]:
        backbone = evolve(small().backbone, weights=weights, loras=loras)
        found = without_local_paths(evolve(small(), backbone=backbone))["backbone"]
        return found["weights"], found["loras"]

    assert named("/home/me/wan", "/a/b/x.safetensors@0.8", "high:~/l/y.safetensors") == (
        "wan",
        ["x.safetensors@0.8", "high:y.safetensors"],
    )
    assert named("Wan-AI/Wan2.2") == ("Wan-AI/Wan2.2", [])
    assert named("/a/high,/a/low") == ("high,low", [])


@pytest.mark.parametrize("layout", ["diffusers", "comfyui"])
def test_two_experts_are_two_files(tmp_path: Path, layout: str) -> None:
    numbers: dict[str, Any] = dict(heads=2, head_width=12, layers=1, ffn=16)
    both = Wan22Moe14B(expert="both", weights=None, dtype="float32", **numbers)
    model = make_run(tmp_path / "run", evolve(small(trains="lora"), backbone=both))
    out = tmp_path / "out" / "x.safetensors"
    code, said, _ = run("export", tmp_path / "run", "--to", layout, "--out", out, "--json")
    files = json.loads(said)["files"]
    assert code == 0 and set(files) == {"high", "low", "memory"}
    assert files["low"] == str(tmp_path / "out" / "x.low.safetensors")
    adapters = model.backbone.adapters()
    for file, expert in (("high", "transformer"), ("low", "transformer_2")):
        one = Wan22MoeBackbone.load(evolve(both, expert=file))
        one.load_adapters(Path(files[file]))
        for name, weight in one.adapters().items():
            assert torch.equal(weight, adapters[f"{expert}.{name}"])
    fit = model.backbone.fit()
    memory = Path(files["memory"])
    load_encoder(memory, model.encoder, width=fit.geometry.width, digest=fit.digest)
    for file in files.values():  # any of them is a RUN
        loaded = load_run(Path(file))
        assert loaded.backbone.adapters().keys() == adapters.keys()
        for name, weight in loaded.backbone.adapters().items():
            assert torch.equal(weight, adapters[name])
        for name, weight in loaded.encoder.state_dict().items():
            assert torch.equal(weight, model.encoder.state_dict()[name])
        assert (lora_file(Path(file)), memory_file(Path(file))) == (Path(files["high"]), memory)
    Path(files["low"]).unlink()
    with pytest.raises(UserError, match="it is of one expert, not of two"):
        load_run(Path(files["high"]))


def test_shipped_weights_have_names(tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    code, said, _ = run("export", "tiny-wan-2x2x2-finetune", "--to", "comfyui", "--out", out)
    assert code == 0 and "rank 64, alpha 192" in said
    tensors = load_file(out)
    assert tensors["diffusion_model.blocks.3.ffn.2.lora_A.weight"].dtype == torch.float16
    assert tensors["diffusion_model.blocks.3.ffn.2.alpha"].item() == 192.0


@pytest.mark.parametrize(
    "words,said",
    [
        (("{runs}/none", "--to", "kohya", "--out", "{out}/x.safetensors"), "no such run"),
        (("{runs}/lora", "--to", "webui", "--out", "{out}/x.safetensors"), "comfyui, kohya"),
        (("{runs}/lora", "--to", "kohya", "--out", "{out}/x.pt"), "ends in .safetensors"),
        (("{runs}/lora", "--to", "kohya", "--out", "{out}"), "ends in .safetensors"),
        (("{runs}/lora", "--to", "kohya", "--out", "{out}/x", "--dtype", "int8"), "float16"),
        (("{runs}/cut", "--to", "kohya", "--out", "{out}/x.safetensors"), "no safetensors file"),
        (("{runs}/dumb", "--to", "diffusers", "--out", "{out}/x.safetensors"), "memory.safet"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    place: Path, model: Model, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    for name, file in (("cut", "lora.safetensors"), ("dumb", "memory.safetensors")):
        if not (place / name).exists():
            make_run(place / name, model.experiment)
            (place / name / "checkpoint-3" / file).write_bytes(b"cut")
    code, out, err = run("export", *(word.format(runs=place, out=tmp_path) for word in words))
    assert code == 2 and said in err and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("longtake: ")
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora.safetensors", "memory.safetensors", "base.safetensors"])
def test_only_an_earlier_export_is_replaced(
    place: Path, model: Model, tmp_path: Path, name: str
) -> None:
    own = place / "lora" / "checkpoint-3" / name
    if not own.exists():
        save_file({"x": torch.zeros(2)}, own)
    before = own.read_bytes()
    code, out, err = run("export", place / "lora", "--to", "kohya", "--out", own)
    assert code == 2 and "no earlier export" in err and out == ""
    assert own.read_bytes() == before
    beside = tmp_path / "x.safetensors"
    (tmp_path / "x.memory.safetensors").write_bytes(before)
    words = ("export", place / "lora", "--to", "kohya", "--out", beside)
    assert run(*words, "--split")[0] == 2 and not beside.exists()
    left = tmp_path / f".x.safetensors.{part_path(beside).name.split('.')[-2][:8]}-99999999.part"
    left.write_bytes(b"half")
    assert run(*words)[0] == 0 and run(*words)[0] == 0
    assert not left.exists()


def test_a_full_disk_leaves_neither_file(
    place: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    real, calls = safetensors.torch.save_file, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    out = tmp_path / "x.safetensors"
    code, _, err = run("export", place / "lora", "--to", "diffusers", "--out", out)
    assert code == 2 and "No space left" in err and len(calls) == 2
    assert not [*tmp_path.iterdir()]
