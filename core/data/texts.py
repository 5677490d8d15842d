"""The prompts of a store: each is embedded once, in a file named by its hash; clips share them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from attrs import define, field
from torch import Tensor
from torch.nn import functional

from ..interfaces.spec import TextEncoderSpec
from ..interfaces.text_encoder import TextEncoder, embed
from ..tools.files import is_tensors, open_tensors, write_tensors
from ..values.text import Text

BATCH = 16  # prompts that the encoder takes together


def prompt_path(root: Path, prompt: str) -> Path:
    """Return the path of a prompt's embedding."""
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
    return root / "texts" / f"{digest[:16]}.safetensors"


def read_embeddings(path: Path) -> Text:
    """Read the embeddings of one prompt, float32, padded with zeros to the length of its mask.

    Raises:
        UserError: the file is missing or damaged.
    """
    with open_tensors(path) as file:
        names, mask = set(file.keys()), file.get_tensor("text.mask")
        real = file.get_tensor("text.embeddings").float()
        return Text(
            embeddings=functional.pad(real, (0, 0, 0, mask.shape[1] - real.shape[1])),
            mask=mask,
            pooled=file.get_tensor("text.pooled").float() if "text.pooled" in names else None,
        )


def embedding_tensors(text: Text) -> dict[str, Tensor]:
    """Return embedded prompts as named tensors for a file, without the zeros after the last token.

    Those of Wan are 4 MB a prompt, nearly all of it zeros.
    """
    places = torch.arange(1, text.mask.shape[1] + 1) * text.mask.any(dim=0).cpu()
    real = text.embeddings[:, : int(places.max())]
    named = {"text.embeddings": real, "text.mask": text.mask, "text.pooled": text.pooled}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


@define
class PromptEmbedder:
    """Embeds prompts into the store at `root`; the encoder runs only for those that are missing."""

    root: Path
    encoder: TextEncoder[TextEncoderSpec]
    embedded: set[str] = field(factory=set, repr=False)

    def embed_missing(self, prompts: Iterable[str]) -> int:
        """Embed the prompts that the store does not have, and return how many those were.

        The encoder's weights are freed at the end, so all prompts should come together.

        Raises:
            UserError: the disk refuses, or the encoder's weights are not there.
        """
        unchecked = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.embedded]
        missing = [prompt for prompt in unchecked if not is_tensors(prompt_path(self.root, prompt))]
        if missing:
            try:
                for first in range(0, len(missing), BATCH):
                    self._embed(missing[first : first + BATCH])
            finally:
                self.encoder.release()
        self.embedded.update(unchecked)
        return len(missing)

    def _embed(self, prompts: list[str]) -> None:
        text = embed(self.encoder, prompts)
        for row, prompt in enumerate(prompts):
            path = prompt_path(self.root, prompt)
            write_tensors(path, embedding_tensors(text.select([row])), {"prompt": prompt})
