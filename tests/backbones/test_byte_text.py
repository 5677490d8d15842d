from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.backbones.texts.bytes import BEGIN, ByteEncoder, byte_vectors
from longtake.backbones.texts.specs import Bytes
from longtake.core.contract.text_encoder import check_text_encoder
from longtake.core.errors import ContractError
from longtake.core.interfaces.text_encoder import TextEncoder, unread_of
from longtake.core.values.text import Text


@pytest.mark.parametrize(
    "spec", [Bytes(), Bytes(width=7, length=5, pooled=3), Bytes(width=2, length=9)]
)
def test_keeps_the_contract(spec: Bytes) -> None:
    check_text_encoder(ByteEncoder(spec))


def test_contract_catches_embeddings_behind_the_mask() -> None:
    class Leaking(ByteEncoder):
        def encode(self, prompts) -> Text:  # type: ignore[no-untyped-def]
            text = super().encode(prompts)
            return Text(embeddings=text.embeddings + 1, mask=text.mask)

    with pytest.raises(AssertionError, match="zero where the mask is False"):
        check_text_encoder(Leaking(Bytes()))


def test_empty_prompt_is_one_real_token() -> None:
    text = ByteEncoder(Bytes(length=4)).encode(["", "ab"])
    assert text.mask.tolist() == [[True] + [False] * 4, [True] * 3 + [False] * 2]
    assert torch.equal(text.embeddings[0, 0], text.embeddings[1, 0])


def test_length_counts_bytes_and_the_rest_is_cut() -> None:
    encoder = ByteEncoder(Bytes(length=4))
    text = encoder.encode(["abcd", "abcdef", "猫猫"])
    assert bool(text.mask.all())
    assert torch.equal(text.embeddings[0], text.embeddings[1])


def test_codes_are_far_from_parallel_and_of_unit_variance() -> None:
    vectors = byte_vectors(64)
    assert vectors.shape == (BEGIN + 1, 64)
    likeness = vectors @ vectors.T / 64
    assert torch.allclose(likeness.diagonal(), torch.ones(BEGIN + 1).double())
    assert float((likeness - likeness.diagonal().diag()).abs().max()) < 0.43
    variance = ByteEncoder(Bytes(length=200)).encode(["the quick brown fox " * 10]).embeddings
    assert 0.8 < float(variance.square().mean()) < 1.2


ENCODER = ByteEncoder(Bytes())


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_two_prompts_differ_unless_their_bytes_are_the_same(one: str, two: str) -> None:
    both = ENCODER.encode([one, two])
    read = [prompt.encode("utf-8", "surrogatepass")[:64] for prompt in (one, two)]
    assert torch.equal(both.embeddings[0], both.embeddings[1]) == (read[0] == read[1])


def test_lone_surrogates_are_legal() -> None:
    assert int(ByteEncoder(Bytes()).encode(["\ud800"]).mask.sum()) == 4


def test_identity_says_the_fields() -> None:
    specs = (Bytes(), Bytes(width=32), Bytes(length=32), Bytes(pooled=32))
    assert len({ByteEncoder(spec).identity for spec in specs}) == 4
    assert ByteEncoder(Bytes()).identity == "bytes-1-64x64"  # what stores already say


def test_pooled_vectors_tell_prompts_apart_and_keep_their_size() -> None:
    encoder = ByteEncoder(Bytes(length=200, pooled=48))
    pooled = encoder.encode(["", "the quick brown fox " * 10, "fox brown quick the"]).pooled
    assert pooled is not None and pooled.shape == (3, 48)
    assert all(0.2 < float(size) < 2 for size in pooled.square().mean(dim=1))
    assert float(torch.pdist(pooled).min()) > 1
    assert encoder.encode(["a"]).embeddings.shape[-1] == 64


def test_without_a_pooled_width_there_is_none() -> None:
    assert ByteEncoder(Bytes()).encode(["a"]).pooled is None


def test_contract_catches_a_prompt_without_tokens() -> None:
    class Empty(ByteEncoder):
        def encode(self, prompts) -> Text:  # type: ignore[no-untyped-def]
            text = super().encode(prompts)
            keep = torch.tensor([bool(prompt) for prompt in prompts])[:, None]
            return Text(embeddings=text.embeddings * keep[..., None], mask=text.mask & keep)

    with pytest.raises(AssertionError, match="no real token"):
        check_text_encoder(Empty(Bytes()))


def test_what_is_not_read_is_said() -> None:
    encoder = ByteEncoder(Bytes(length=4))
    prompts = ["", "abcd", "abcdef", "abc猫d", "a\ud800b", "a\ud800"]
    assert encoder.unread(prompts) == ["", "", "ef", "猫d", "b", ""]
    assert unread_of(encoder, ["abcdef", "ab", "abcdef"]) == {"abcdef": "ef"}


def test_an_encoder_need_not_say_it_but_may_not_lie() -> None:
    class Silent(ByteEncoder):
        def unread(self, prompts: Sequence[str]) -> None:  # type: ignore[override]
            return TextEncoder.unread(self, prompts)  # type: ignore[func-returns-value]

    check_text_encoder(Silent(Bytes()))
    assert unread_of(Silent(Bytes(length=1)), ["abc"]) == {}

    class Lying(ByteEncoder):
        def unread(self, prompts: Sequence[str]) -> list[str]:
            return [""] * len(prompts)

    with pytest.raises(AssertionError, match="a prompt whose end changes no embedding"):
        check_text_encoder(Lying(Bytes()))

    class Short(ByteEncoder):
        def unread(self, prompts: Sequence[str]) -> list[str]:
            return []

    with pytest.raises(ContractError, match="unread must give one text for each of 1 prompts"):
        unread_of(Short(Bytes()), ["a"])
