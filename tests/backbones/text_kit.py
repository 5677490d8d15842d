"""Small text encoders as diffusers folders: the real classes, saved by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH, POOLED = 16, 12
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEMPLATE = "<|head|>system\n\nDescribe:<|eot|><|head|>user\n\n{}<|eot|>"


def umt5_folder(root: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save a UMT5 encoder and its tokenizer as a Wan checkpoint has them."""
    numbers: dict[str, Any] = dict(
        vocab_size=40, d_model=WIDTH, d_kv=4, d_ff=24, num_layers=2, num_heads=4
    )
    numbers |= {"tie_word_embeddings": False}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = UMT5EncoderModel(UMT5Config(**(numbers | changes)))
    model.save_pretrained(root / "text_encoder")
    unigram_tokenizer().save_pretrained(root / "tokenizer")
    return root


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁cat", -3.5)]
    made = Tokenizer(models.Unigram([*pieces, *((c, -4.0) for c in LETTERS)], unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def hunyuan_folder(root: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save LLaMA, CLIP and their tokenizers as a HunyuanVideo checkpoint has them."""
    tokenizer = byte_tokenizer()
    numbers: dict[str, Any] = dict(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaModel(LlamaConfig(**(numbers | changes))).save_pretrained(root / "text_encoder")
        CLIPTextModel(clip_config()).save_pretrained(root / "text_encoder_2")
    tokenizer.save_pretrained(root / "tokenizer")
    clip_tokenizer(root / "tokenizer_2")
    return root


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with special tokens, as LLaMA 3 has it."""
    special = ["<|begin|>", "<|eot|>", "<|head|>", "<|pad|>"]
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab | {"ca": 256, "cat": 257}, [("c", "a"), ("ca", "t")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(special)
    begin = made.token_to_id("<|begin|>")
    made.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|begin|>", eos_token="<|eot|>", pad_token="<|pad|>"
    )


def clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=2 * 256 + 3, hidden_size=POOLED, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, eos_token_id=2 * 256 + 2, bos_token_id=2 * 256 + 1, pad_token_id=1,
    )  # fmt: skip


def clip_tokenizer(folder: Path) -> None:
    """Save CLIP's tokenizer as HunyuanVideo's checkpoint has it: without tokenizer.json."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(c + "</w>" for c in letters), "at</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    vocab = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\na t</w>\n", encoding="utf-8")
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    names |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    config = {**names, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(names), encoding="utf-8")
