"""Wan's text encoder: UMT5, as `WanPipeline` runs it."""

from __future__ import annotations

from typing import Any

from ...core.values.text import Text
from ..weights.find import find_text_encoder
from .loading import WeightsEncoder, check_config, load_text_model, load_tokenizer
from .specs import Umt5

TIED = "encoder.embed_tokens.weight"


class Umt5Encoder(WeightsEncoder[Umt5]):
    """The last hidden states of UMT5, zero beyond the prompt: `WanPipeline`'s embeddings.

    Prompts are cleaned by the pipeline's own function (HTML entities, white space; broken letters
    too, where ftfy is installed).
    """

    parts = ("text_encoder", "tokenizer")

    @property
    def _name(self) -> str:
        return f"umt5-{self.spec.length}"

    def _load(self) -> dict[str, Any]:
        from transformers import UMT5EncoderModel

        folder = find_text_encoder(self.spec.weights, self.parts)
        check_config(folder / "text_encoder", ("umt5",), d_model=self.spec.width)
        tokenizer = load_tokenizer(folder / "tokenizer")
        part = folder / "text_encoder"
        model = load_text_model(UMT5EncoderModel, part, self.spec, self.device, tied=TIED)
        # Wan's config says that nothing is tied, and transformers 5.0 believed it.
        model.encoder.set_input_embeddings(model.shared)
        return {"text_encoder": model, "tokenizer": tokenizer}

    @property
    def _most_tokens(self) -> int:
        return self.spec.length

    def _read_as(self, prompt: str) -> tuple[str, int, int]:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        cleaned = str(prompt_clean(prompt))
        return cleaned, 0, len(cleaned)

    def _embed(self, prompts: list[str]) -> Text:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        tokens = self._loaded["tokenizer"](
            [prompt_clean(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.spec.length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.device)
        states = self._loaded["text_encoder"](tokens.input_ids, tokens.attention_mask)
        mask = tokens.attention_mask.bool()
        embeddings = states.last_hidden_state.masked_fill(~mask[..., None], 0.0)  # [B, L, E]
        return Text(embeddings=embeddings, mask=mask)
