"""Prompts of a store, each embedded once, in a file named by its hash; clips share them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from attrs import define, field
from torch import Tensor
from torch.nn import functional

from ..interfaces.spec import TextEncoderSpec
from ..interfaces.text_encoder import TextEncoder
from ..tools.files import is_tensors, open_tensors, write_tensors
from ..values.text import Text

AT_ONCE = 16  # prompts given to the encoder together


def text_path(root: Path, prompt: str) -> Path:
    """Return where the embedding of a prompt is."""
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
    return root / "texts" / f"{digest[:16]}.safetensors"


def read_text(path: Path) -> Text:
    """Return the embeddings of one prompt out of a safetensors file."""
    with open_tensors(path) as file:
        names, mask = set(file.keys()), file.get_tensor("text.mask")
        found = file.get_tensor("text.embeddings").float()
        return Text(
            embeddings=functional.pad(found, (0, 0, 0, mask.shape[1] - found.shape[1])),
            mask=mask,
            pooled=file.get_tensor("text.pooled").float() if "text.pooled" in names else None,
        )


def text_tensors(text: Text) -> dict[str, Tensor]:
    """Return embedded prompts as named tensors for a file, without the zeros after the last token.

    Those of Wan are 4 MB a prompt, nearly all of it zeros.
    """
    real = torch.arange(1, text.mask.shape[1] + 1) * text.mask.any(dim=0).cpu()
    kept = text.embeddings[:, : int(real.max())]
    named = {"text.embeddings": kept, "text.mask": text.mask, "text.pooled": text.pooled}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


@define
class Texts:
    """The prompts of a store; the encoder runs only for those that are not there yet."""

    root: Path
    encoder: TextEncoder[TextEncoderSpec]
    known: set[str] = field(factory=set, repr=False)

    def ensure(self, prompts: Iterable[str]) -> int:
        """Embed the prompts that are missing and give how many there were.

        The encoder's weights are freed at the end, so all prompts should come together.

        Raises:
            UserError: the disk refuses, or the encoder's weights are not there.
        """
        asked = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        missing = [prompt for prompt in asked if not is_tensors(text_path(self.root, prompt))]
        if missing:
            self._embed_all(missing)
        self.known.update(asked)
        return len(missing)

    def _embed_all(self, prompts: list[str]) -> None:
        try:
            for first in range(0, len(prompts), AT_ONCE):
                self._embed(prompts[first : first + AT_ONCE])
        finally:
            self.encoder.release()

    def _embed(self, prompts: list[str]) -> None:
        with torch.no_grad():
            text = self.encoder.encode(prompts)
        for row, prompt in enumerate(prompts):
            path = text_path(self.root, prompt)
            write_tensors(path, text_tensors(text.select([row])), {"prompt": prompt})
