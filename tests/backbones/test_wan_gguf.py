"""GGUF files, where the extra `gguf` is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from longtake.backbones.texts.specs import Umt5
from longtake.backbones.wan.published import PublishedWanBackbone
from longtake.backbones.wan.specs import Wan22Dense5B
from longtake.core.errors import UserError
from longtake.core.interfaces.spec import LoRA

from .wan_names import original

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
SPEC = Wan22Dense5B(
    heads=2, head_width=32, layers=2, ffn=64, text_encoder=Umt5(width=32), weights=None
)


def reference() -> Any:
    torch.manual_seed(3)
    model = WanTransformer3DModel(**SPEC.config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return model.eval()


def write(path: Path, tensors: dict[str, Tensor], rest: str) -> None:
    """Write matrices as Q8_0, and the rest as the type `rest`."""
    file = gguf.GGUFWriter(path, "wan")
    for name, tensor in tensors.items():
        matrix = tensor.ndim == 2 and name.endswith(".weight")
        kind = gguf.GGMLQuantizationType["Q8_0" if matrix else rest]
        data = gguf.quants.quantize(tensor.float().numpy(), kind)
        file.add_tensor(original(name), data, raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def velocity(model: PublishedWanBackbone) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 4, 32, generator=generator)
    context = model.context(attrs.evolve(model.blank_text(1, 4), embeddings=text))
    x = torch.randn(1, 48, 3, 4, 6, generator=generator)
    return model.velocity(x, torch.tensor([0.7]), torch.arange(3)[None], context)


@pytest.mark.parametrize("rest", ["F32", "BF16"])
def test_a_gguf_file_predicts_what_its_weights_say(tmp_path: Path, rest: str) -> None:
    base, path = reference(), tmp_path / "wan.gguf"
    write(path, base.state_dict(), rest)
    model = PublishedWanBackbone.load(attrs.evolve(SPEC, weights=str(path)))
    plain = PublishedWanBackbone.load(SPEC)
    plain.load_state_dict(base.state_dict())
    with torch.no_grad():
        ours, theirs = velocity(model).float(), velocity(plain).float()
    assert float((ours - theirs).abs().max()) < 0.05 * float(theirs.abs().max())
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.uint8, "it stays quantised"
    assert model.fit().patch_weight.shape == (64, 48, 1, 2, 2)
    assert model.fit().patch_weight.is_floating_point()


def test_lora_trains_on_a_gguf_file(tmp_path: Path) -> None:
    write(tmp_path / "wan.gguf", reference().state_dict(), "F32")
    model = PublishedWanBackbone.load(attrs.evolve(SPEC, weights=str(tmp_path / "wan.gguf")))
    model.add_lora(LoRA(rank=2, alpha=2.0))
    velocity(model).square().sum().backward()
    moved = [n for n, p in model.adapters().items() if p.grad is not None and p.grad.any()]
    assert moved and all(".lora_B." in name for name in moved)


def test_what_a_gguf_file_lacks_is_said(tmp_path: Path) -> None:
    tensors = reference().state_dict()
    del tensors["blocks.1.ffn.net.2.weight"]
    write(tmp_path / "wan.gguf", tensors, "F32")
    with pytest.raises(UserError, match="wan.gguf lack 1 tensors, such as blocks.1.ffn") as caught:
        PublishedWanBackbone.load(attrs.evolve(SPEC, weights=str(tmp_path / "wan.gguf")))
    assert "\n" not in str(caught.value)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"x" * 40)
    with pytest.raises(UserError, match="bad.gguf cannot be read: ") as caught:
        PublishedWanBackbone.load(attrs.evolve(SPEC, weights=str(tmp_path / "bad.gguf")))
    assert "\n" not in str(caught.value)
