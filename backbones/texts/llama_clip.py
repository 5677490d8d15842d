"""HunyuanVideo's text encoders: LLaMA and CLIP, as `HunyuanVideoPipeline` runs them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor

from ...core.errors import UserError
from ...core.tools.files import read_object
from ...core.values.text import Text
from ..weights.find import TRANSFORMERS_MODEL, find_text_encoder
from .loading import WeightsEncoder, check_config, load_text_model, load_tokenizer
from .specs import LlamaClip

CLIP_LENGTH = 77


class LlamaClipEncoder(WeightsEncoder[LlamaClip]):
    """LLaMA's hidden states of the prompt in its template, and CLIP's pooled vector.

    Both are those of `HunyuanVideoPipeline`; beyond the prompt, where the pipeline leaves states
    that its mask hides, they are zero.
    """

    parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    @property
    def _name(self) -> str:
        spec = self.spec
        template = hashlib.sha256(spec.template.encode()).hexdigest()[:6]
        return f"llama-clip-{spec.length}-{template}-{spec.crop}-{spec.skip}"

    def _load(self) -> dict[str, Any]:
        from transformers import CLIPTextModel, LlamaModel

        spec, folder = self.spec, find_text_encoder(self.spec.weights, self.parts)
        llama, clip = (folder / part for part in ("text_encoder", "text_encoder_2"))
        check_config(llama, ("llama",), hidden_size=spec.width)
        check_config(clip, ("clip_text_model", "clip"), hidden_size=spec.pooled)
        _check_layers(llama, spec.skip)
        plain = attrs.evolve(spec, quantize="none")  # CLIP is small
        return {
            "tokenizer": load_tokenizer(folder / "tokenizer"),
            "tokenizer_2": load_tokenizer(folder / "tokenizer_2"),
            "text_encoder": load_text_model(LlamaModel, llama, spec, self.device),
            "text_encoder_2": load_text_model(CLIPTextModel, clip, plain, self.device),
        }

    @property
    def _most_tokens(self) -> int:
        return self.spec.length + self.spec.crop

    def _read_as(self, prompt: str) -> tuple[str, int, int]:
        """Return the template with the prompt in it.

        CLIP's vector is of the first 77 tokens; LLaMA, which reads more, is what counts.
        """
        begin = self.spec.template.index("{}")
        return self.spec.template.format(prompt), begin, begin + len(prompt)

    def _embed(self, prompts: list[str]) -> Text:
        embeddings, mask = self._llama(prompts)
        return Text(embeddings=embeddings, mask=mask, pooled=self._clip(prompts))

    def _llama(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        spec = self.spec
        tokens = self._loaded["tokenizer"](
            [spec.template.format(prompt) for prompt in prompts],
            max_length=spec.length + spec.crop,
            padding="max_length",
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.device)
        states = self._loaded["text_encoder"](
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            output_hidden_states=True,
        ).hidden_states[-(spec.skip + 1)]
        mask = tokens.attention_mask[:, spec.crop :].bool()
        return states[:, spec.crop :].masked_fill(~mask[..., None], 0.0), mask  # [B, L, E]

    def _clip(self, prompts: list[str]) -> Tensor:
        tokens = self._loaded["tokenizer_2"](
            prompts,
            padding="max_length",
            max_length=CLIP_LENGTH,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        pooled: Tensor = self._loaded["text_encoder_2"](tokens.input_ids).pooler_output
        return pooled  # [B, E']


def _check_layers(folder: Path, skip: int) -> None:
    key = "num_hidden_layers"
    layers = read_object(folder / "config.json", TRANSFORMERS_MODEL, key)[key]
    if layers < skip:
        raise UserError(f"text_encoder.skip {skip}: {folder} has only {layers} layers")
