"""`llama-clip` gives what `HunyuanVideoPipeline` gives, and says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, LlamaModel

from longtake.backbones.texts.llama_clip import LlamaClipEncoder
from longtake.backbones.texts.specs import LlamaClip
from longtake.core.contract.text_encoder import check_text_encoder
from longtake.core.errors import UserError
from longtake.core.registry import build

from .text_kit import POOLED, TEMPLATE, WIDTH, byte_tokenizer, hunyuan_folder

PROMPTS = ["a  cat &amp; dog\n", "", "long word " * 30, "{} Ä {0}"]
CROP = len(byte_tokenizer()(TEMPLATE.split("{}")[0]).input_ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hunyuan_folder(tmp_path_factory.mktemp("hunyuan"))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def spec(folder: Path | str, **changes: Any) -> LlamaClip:
    numbers: dict[str, Any] = dict(width=WIDTH, pooled=POOLED, length=20, dtype="float32")
    numbers |= {"weights": str(folder), "template": TEMPLATE, "crop": CROP}
    return LlamaClip(**(numbers | changes))


def pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> HunyuanVideoPipeline:
    return HunyuanVideoPipeline(
        text_encoder=LlamaModel.from_pretrained(folder / "text_encoder", dtype=dtype).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        transformer=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder_2=CLIPTextModel.from_pretrained(folder / "text_encoder_2", dtype=dtype).eval(),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
    )


def refused(made: LlamaClip) -> str:
    with pytest.raises(UserError) as error:
        build(made).encode(["a cat"])
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_embeddings_are_the_pipelines_to_the_bit(folder: Path, dtype: str) -> None:
    states, pooled, mask = pipeline(folder, getattr(torch, dtype)).encode_prompt(
        PROMPTS,
        prompt_template={"template": TEMPLATE, "crop_start": CROP},
        max_sequence_length=20,
        device="cpu",
    )
    found = LlamaClipEncoder(spec(folder, dtype=dtype)).encode(PROMPTS)
    assert torch.equal(found.mask, mask.bool()) and torch.equal(found.pooled, pooled)
    assert torch.equal(found.embeddings[found.mask], states[mask.bool()])
    assert not bool(found.embeddings[~found.mask].any())
    assert not bool(found.mask.all()) and found.mask.sum(dim=1).tolist()[1:3] == [1, 20]


@pytest.mark.parametrize("skip", [0, 1, 3])
@torch.no_grad()
def test_layers_are_skipped_as_the_pipeline_does(folder: Path, skip: int) -> None:
    states, mask = pipeline(folder)._get_llama_prompt_embeds(
        ["a cat"],
        {"template": TEMPLATE, "crop_start": CROP},
        device="cpu",
        max_sequence_length=20,
        num_hidden_layers_to_skip=skip,
    )
    found = LlamaClipEncoder(spec(folder, skip=skip)).encode(["a cat"])
    assert torch.equal(found.embeddings[found.mask], states[mask.bool()])


def test_the_template_is_diffusers() -> None:
    assert LlamaClip().template == DEFAULT_PROMPT_TEMPLATE["template"]
    assert LlamaClip().crop == DEFAULT_PROMPT_TEMPLATE["crop_start"]


@pytest.mark.parametrize("bad", ["no place", "{} {}", "{0}", "{} {x}", "}{}{"])
def test_a_template_has_one_place(bad: str) -> None:
    with pytest.raises(ValueError, match="must hold {} once"):
        LlamaClip(template=bad)


@pytest.mark.slow
def test_keeps_the_contract(folder: Path) -> None:
    check_text_encoder(LlamaClipEncoder(spec(folder)))


def test_tokenizer_json_goes_before_the_name_of_a_class(folder: Path, copied: Path) -> None:
    path = copied / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"tokenizer_class": "LlamaTokenizer"}))
    one, two = (LlamaClipEncoder(spec(where)).encode(PROMPTS) for where in (folder, copied))
    assert torch.equal(one.mask, two.mask) and torch.equal(one.embeddings, two.embeddings)


def test_identity_tells_weights_and_fields_apart(folder: Path, tmp_path: Path) -> None:
    made = spec(folder)
    changes: list[dict[str, Any]] = [{"skip": 1}, {"crop": 3}, {"template": "{}"}, {"length": 9}]
    changes.append({"weights": str(hunyuan_folder(tmp_path / "other", seed=1))})
    names = {LlamaClipEncoder(attrs.evolve(made, **change)).identity for change in changes}
    assert len(names | {LlamaClipEncoder(made).identity}) == 6


def test_another_model(folder: Path, copied: Path) -> None:
    assert "hidden_size is 16, not 4096" in refused(spec(folder, width=4096))
    assert "hidden_size is 12, not 768" in refused(spec(folder, pooled=768))
    assert "has only 3 layers" in refused(spec(folder, skip=4))
    shutil.rmtree(copied / "text_encoder_2")
    assert "no subfolder text_encoder_2" in refused(spec(copied))
    shutil.copytree(copied / "text_encoder", copied / "text_encoder_2")
    assert "holds a model of llama, not of clip_text_model" in refused(spec(copied))


@pytest.mark.slow
def test_release_frees_both(folder: Path) -> None:
    encoder = LlamaClipEncoder(spec(folder))
    first = encoder.encode(["cat"])
    assert len(encoder._loaded) == 4
    encoder.release()
    assert not encoder._loaded
    assert torch.equal(encoder.encode(["cat"]).embeddings, first.embeddings)


@torch.no_grad()
def test_what_is_not_read_is_said_without_weights(folder: Path, copied: Path) -> None:
    prompts = ["cat", "", "ab" * 9, "abcd " * 8, "Ä" * 30]
    shutil.rmtree(copied / "text_encoder")
    ends = LlamaClipEncoder(spec(copied)).unread(prompts)
    assert ends is not None
    encoder = LlamaClipEncoder(spec(folder))
    assert encoder.unread(prompts) == ends
    whole = encoder.encode(prompts).embeddings
    for prompt, end, embedding in zip(prompts, ends, whole, strict=True):
        shorter = encoder.encode([prompt.strip()[:-1]]).embeddings[0]
        assert not prompt or torch.equal(shorter, embedding) == bool(end), (prompt, end)
        if end:  # the rest alone is read as the whole prompt is
            read = encoder.encode([prompt.strip().removesuffix(end)]).embeddings[0]
            assert prompt.strip().endswith(end) and torch.equal(read, embedding), (prompt, end)
    assert ends[0] == "" and any(ends)
    assert LlamaClipEncoder(spec("nobody/nothing", length=512)).unread(["a cat"]) == [""]
