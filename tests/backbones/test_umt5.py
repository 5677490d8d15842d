"""`umt5` gives what `WanPipeline` gives, loads late, frees early, and says what is wrong."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, UMT5EncoderModel

from longtake.backbones.texts.specs import Umt5
from longtake.backbones.texts.umt5 import Umt5Encoder
from longtake.core.contract.text_encoder import check_text_encoder
from longtake.core.errors import UserError
from longtake.core.registry import build

from .text_kit import WIDTH, umt5_folder

PROMPTS = ["a  cat &amp; dog\n", "", "x " * 50, "<b> Ä"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return umt5_folder(tmp_path_factory.mktemp("wan"))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def spec(folder: Path | str, **changes: Any) -> Umt5:
    return Umt5(
        **({"weights": str(folder), "width": WIDTH, "length": 20, "dtype": "float32"} | changes)
    )


def refused(made: Umt5) -> str:
    with pytest.raises(UserError) as error:
        build(made).encode(["a cat"])
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_embeddings_are_the_pipelines_to_the_bit(folder: Path, dtype: str) -> None:
    model = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    pipeline = WanPipeline(tokenizer, model.eval(), None, UniPCMultistepScheduler())
    wanted, _ = pipeline.encode_prompt(
        PROMPTS, do_classifier_free_guidance=False, max_sequence_length=20, device="cpu"
    )
    found = Umt5Encoder(spec(folder, dtype=dtype)).encode(PROMPTS)
    assert found.embeddings.dtype == getattr(torch, dtype)
    assert torch.equal(found.embeddings, wanted)
    assert found.pooled is None and found.mask.sum(dim=1).tolist()[1:3] == [1, 20]


@pytest.mark.slow
def test_keeps_the_contract(folder: Path) -> None:
    check_text_encoder(Umt5Encoder(spec(folder)))


def test_is_found_by_its_spec(folder: Path) -> None:
    assert isinstance(build(spec(folder)), Umt5Encoder)


def test_passes_do_not_matter(folder: Path) -> None:
    encoder, prompts = Umt5Encoder(spec(folder)), ["cat " * n for n in range(20)]
    alone = torch.cat([encoder.encode([prompt]).embeddings for prompt in prompts])
    assert torch.allclose(encoder.encode(prompts).embeddings, alone, atol=1e-6)


def test_lone_surrogates_are_read(folder: Path) -> None:
    assert bool(Umt5Encoder(spec(folder)).encode(["a \ud800 cat"]).mask.any())


@pytest.mark.slow
def test_loads_at_the_first_prompt_and_again_after_release(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], UMT5EncoderModel.from_pretrained
    counted = lambda *args, **kw: (loads.append(args), load(*args, **kw))[1]  # noqa: E731
    monkeypatch.setattr(UMT5EncoderModel, "from_pretrained", counted)
    encoder = Umt5Encoder(spec(folder))
    assert encoder.identity and not loads
    first, again = (encoder.encode(["cat"]).embeddings for _ in range(2))
    assert len(loads) == 1
    encoder.release()
    assert torch.equal(encoder.encode(["cat"]).embeddings, first) and torch.equal(first, again)
    assert len(loads) == 2
    encoder.to("cpu")
    encoder.encode(["cat"])
    assert len(loads) == 3


def test_released_weights_are_gone(folder: Path) -> None:
    encoder = Umt5Encoder(spec(folder))
    encoder.encode(["cat"])
    model = weakref.ref(encoder._loaded["text_encoder"])
    encoder.release()
    assert model() is None


def test_a_table_of_words_saved_once_serves_both(folder: Path) -> None:
    encoder = Umt5Encoder(spec(folder))
    encoder.encode([""])
    model = encoder._loaded["text_encoder"]
    assert model.encoder.embed_tokens.weight is model.shared.weight
    saved = load_file(folder / "text_encoder" / "model.safetensors")
    assert torch.equal(model.encoder.embed_tokens.weight, saved["shared.weight"])


def test_identity_tells_weights_and_fields_apart(folder: Path, copied: Path) -> None:
    made = spec(folder)
    mine = Umt5Encoder(made).identity
    assert Umt5Encoder(attrs.evolve(made, weights=str(copied))).identity == mine
    changes: list[dict[str, Any]] = [{"length": 9}, {"dtype": "bfloat16"}, {"quantize": "nf4"}]
    others = {Umt5Encoder(attrs.evolve(made, **change)).identity for change in changes}
    weights = copied / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    save_file(tensors | {name: tensors[name] + 1}, weights, metadata={"format": "pt"})
    others.add(Umt5Encoder(spec(copied)).identity)
    assert len(others | {mine}) == 5


def test_identity_of_a_hub_id_needs_no_files() -> None:
    assert Umt5Encoder(Umt5()).identity == "umt5-512 Wan-AI/Wan2.2-TI2V-5B-Diffusers bfloat16"


def test_missing_folders(copied: Path, tmp_path: Path) -> None:
    assert "no such folder; name a diffusers folder" in refused(spec(tmp_path / "none"))
    shutil.rmtree(copied / "tokenizer")
    assert "no subfolder tokenizer" in refused(spec(copied))
    (copied / "tokenizer").mkdir()
    assert "holds no tokenizer that can be read" in refused(spec(copied))


def test_a_hub_that_is_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "the hub cannot be reached (HF_HUB_OFFLINE is set)" in refused(spec("nobody/nothing"))


def test_another_model(copied: Path) -> None:
    assert "d_model is 16, not 4096" in refused(spec(copied, width=4096))
    path = copied / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"model_type": "t5"}))
    assert "holds a model of t5, not of umt5" in refused(spec(copied))
    path.unlink()
    assert "config.json is missing" in refused(spec(copied))


def test_damaged_weights(copied: Path) -> None:
    path = copied / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.final_layer_norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    assert "lacks 1 tensors, such as encoder.final_layer_norm.weight" in refused(spec(copied))
    path.write_bytes(path.read_bytes()[:100])
    assert "cannot be read" in refused(spec(copied))
    path.unlink()
    assert "no safetensors files" in refused(spec(copied))


def test_quantization_that_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtake.backbones.weights.load.find_spec", lambda name: None)
    assert "text_encoder.quantize nf4 needs bitsandbytes" in refused(spec(folder, quantize="nf4"))
    monkeypatch.setattr("longtake.backbones.weights.load.find_spec", lambda name: name)
    assert "needs a GPU" in refused(spec(folder, quantize="nf4"))


@torch.no_grad()
def test_what_is_not_read_is_said_without_weights(folder: Path, copied: Path) -> None:
    prompts = ["cat", "a  b &amp; " + "x" * 20, "cat " * 19, "cat " * 21, "abcd " * 9]
    shutil.rmtree(copied / "text_encoder")
    ends = Umt5Encoder(spec(copied)).unread(prompts)
    assert ends is not None
    encoder = Umt5Encoder(spec(folder))
    assert encoder.unread(prompts) == ends
    whole = encoder.encode(prompts).embeddings
    for prompt, end, embedding in zip(prompts, ends, whole, strict=True):
        shorter = encoder.encode([prompt.strip()[:-1]]).embeddings[0]
        assert not prompt or torch.equal(shorter, embedding) == bool(end), (prompt, end)
        if end:  # the rest alone is read as the whole prompt is
            read = encoder.encode([prompt.strip().removesuffix(end)]).embeddings[0]
            assert prompt.strip().endswith(end) and torch.equal(read, embedding), (prompt, end)
    assert ends[0] == "" and any(ends)
    assert Umt5Encoder(spec("nobody/nothing", length=512)).unread(["a cat"]) == [""]
