"""Text encoders with weights: loaded at the first prompt, freed by `release`.

Their parts are models and tokenizers of transformers, in subfolders of a diffusers folder. Pickles
are never read.
"""

from __future__ import annotations

import gc
import unicodedata
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ...core.data.windows import stack_texts
from ...core.errors import UserError
from ...core.interfaces.text_encoder import TextEncoder
from ...core.tools.files import read_object
from ...core.tools.hub import first_line
from ...core.values.text import Text
from ..weights.find import (
    TRANSFORMERS_MODEL,
    find_text_encoder,
    text_encoder_available_offline,
    text_encoder_identity,
)
from ..weights.load import require_package
from .specs import WeightsSpec

W = TypeVar("W", bound=WeightsSpec)
BATCH = 16  # prompts in one pass
SPECIAL = 4  # tokens that tokenizers put around a text, at most
# What loading may raise where files are damaged or do not fit.
FAULTS = (
    OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError, StrictDataclassError
)  # fmt: skip


class WeightsEncoder(TextEncoder[W]):
    """A text encoder that loads its parts at the first `encode`, and again after `release`.

    Attributes:
        parts: the subfolders of a diffusers folder that it needs.
    """

    parts: ClassVar[tuple[str, ...]]

    def __init__(self, spec: W) -> None:
        super().__init__(spec)
        self._loaded: dict[str, Any] = {}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Text:
        """Return the embeddings of the prompts on the CPU, in the dtype of the weights.

        Raises:
            UserError: weights are missing, damaged or of another model, or quantization is not
                installed.
        """
        self._loaded = self._loaded or self._load()
        texts = [_readable(prompt) for prompt in prompts]
        passes = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        return stack_texts([self._embed(each).to("cpu") for each in passes])

    def unread(self, prompts: Sequence[str]) -> list[str] | None:
        """Return the end of each prompt that lies beyond `length` tokens; it loads the tokenizer.

        None where the tokenizer cannot say where its tokens lie, as those written in Python.

        Raises:
            UserError: there is none, or it is damaged.
        """
        texts = [self._read_as(_readable(prompt)) for prompt in prompts]
        long = [self._may_be_cut(text) for text, _, _ in texts]
        if not any(long):
            return [""] * len(texts)
        tokenizer = self._loaded.get("tokenizer")
        if tokenizer is None:
            folder = find_text_encoder(self.spec.weights, ("tokenizer",))
            tokenizer = load_tokenizer(folder / "tokenizer")
        if not tokenizer.is_fast:
            return None
        pairs = zip(long, texts, strict=True)
        return [self._end(tokenizer, *text) if is_long else "" for is_long, text in pairs]

    def _end(self, tokenizer: Any, text: str, begin: int, end: int) -> str:
        """Return what tokens do not reach of the characters `begin` to `end` of a text."""
        options: dict[str, Any] = {"return_offsets_mapping": True, "verbose": False}
        every = tokenizer(text, **options)["offset_mapping"]
        if len(every) <= self._most_tokens:
            return ""
        read = tokenizer(text, truncation=True, max_length=self._most_tokens, **options)
        reached = max((to for _, to in read["offset_mapping"]), default=0)
        return text[max(begin, reached) : end].strip()

    def _may_be_cut(self, text: str) -> bool:
        """Return whether a text could be too long: a token stands for a byte of it, or for more."""
        size = len(unicodedata.normalize("NFKC", text).encode("utf-8"))
        return size + SPECIAL > self._most_tokens

    @property
    @abstractmethod
    def _most_tokens(self) -> int:
        """Tokens that the tokenizer gives at most, special ones among them."""

    def _read_as(self, prompt: str) -> tuple[str, int, int]:
        """Return what the tokenizer reads for a prompt, and where in it that begins and ends."""
        return prompt, 0, len(prompt)

    def release(self) -> None:
        """Free the weights; the next `encode` loads them again."""
        if not self._loaded:
            return
        self._loaded = {}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def identity(self) -> str:
        """Name, weights and what else changes the numbers; nothing is loaded."""
        spec = self.spec
        numbers = spec.dtype if spec.quantize == "none" else f"{spec.dtype}-{spec.quantize}"
        return f"{self._name} {text_encoder_identity(spec.weights, self.parts)} {numbers}"

    @property
    def available_offline(self) -> bool:
        """Whether all parts are in the folder that `weights` names, or in the hub's cache."""
        return text_encoder_available_offline(self.spec.weights, self.parts)

    @property
    @abstractmethod
    def _name(self) -> str:
        """Name of the kind of encoder, with all fields that change embeddings."""

    @abstractmethod
    def _load(self) -> dict[str, Any]:
        """Return models and tokenizers by the name of their part."""

    @abstractmethod
    def _embed(self, prompts: list[str]) -> Text:
        """Return the embeddings of prompts in one pass."""


def _readable(prompt: str) -> str:
    """Return a prompt that tokenizers read: lone surrogates become question marks."""
    return prompt.encode("utf-8", "replace").decode("utf-8")


def check_config(folder: Path, kinds: tuple[str, ...], **numbers: int) -> None:
    """Refuse a folder that holds no model of these kinds, or one of other numbers.

    Args:
        folder: of the model.
        kinds: the values that `model_type` may have.
        numbers: keys of config.json and what they must be.

    Raises:
        UserError: config.json says otherwise, or there are no safetensors files.
    """
    config = read_object(folder / "config.json", TRANSFORMERS_MODEL)
    if config.get("model_type") not in kinds:
        raise UserError(f"{folder} holds a model of {config.get('model_type')}, not of {kinds[0]}")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no safetensors files: this is no {TRANSFORMERS_MODEL}")
    for key, value in numbers.items():
        if config.get(key) != value:
            raise UserError(
                f"{folder} does not fit the spec: {key} is {config.get(key)}, not {value}"
            )


def load_text_model(
    cls: Any, folder: Path, spec: WeightsSpec, device: torch.device, *, tied: str = ""
) -> Any:
    """Return a model of transformers in eval mode on `device`; pickles are never read.

    Args:
        cls: of the model, such as `UMT5EncoderModel`.
        folder: of the model, as checked.
        spec: its dtype and quantization are used.
        device: where it goes.
        tied: a tensor that may be missing, because the model ties it to another.

    Raises:
        UserError: files are damaged or lack tensors, or quantization is not installed.
    """
    options = _quantization(spec, device) if spec.quantize != "none" else {}
    try:
        with torch.random.fork_rng(devices=[]):
            model, info = cls.from_pretrained(
                str(folder),
                dtype=getattr(torch, spec.dtype),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except FAULTS as error:
        raise UserError(f"{folder} cannot be read: {first_line(error)}") from error
    missing = set(info["missing_keys"]) - {tied}
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} tensors, such as {min(missing)}")
    return (model if options else model.to(device)).eval()


def _quantization(spec: WeightsSpec, device: torch.device) -> dict[str, Any]:
    what = f"text_encoder.quantize {spec.quantize}"
    require_package("bitsandbytes", what)
    if device.type != "cuda":
        raise UserError(f"{what} needs a GPU, and the encoder runs on {device}")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, spec.dtype),
    )
    return {"quantization_config": config, "device_map": {"": device}}


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder: tokenizer.json as it is, else by the files of its class.

    The classes of some tokenizers build anew what tokenizer.json says, and not always to the same
    (LLaMA 3 under the class of LLaMA 2), so that file goes before the name of a class.

    Raises:
        UserError: there is none, or it is damaged.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    whole = (folder / "tokenizer.json").exists()
    loader: Any = PreTrainedTokenizerFast if whole else AutoTokenizer
    try:
        return loader.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise UserError(
            f"{folder} holds no tokenizer that can be read: {first_line(error)}"
        ) from error
