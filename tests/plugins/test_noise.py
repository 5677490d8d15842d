from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.contract.masker import check_masker
from longtake.core.errors import UserError
from longtake.core.values.draws import Draws
from longtake.core.values.grid import Rate
from longtake.core.values.history import History, Query
from longtake.core.values.text import Text
from longtake.plugins.maskers.hiding import NoiseMasker
from longtake.plugins.maskers.specs import Noise

TEXT = Text(embeddings=torch.zeros(4, 1, 2), mask=torch.ones(4, 1, dtype=torch.bool))
TWO, FOUR = Rate(height=2, width=2, time=2), Rate(height=4, width=4, time=4)


def history(time: int = 13, length: list[int] | None = None, batch: int = 4) -> History:
    generator = torch.Generator().manual_seed(5)
    return History(
        latents=torch.randn(batch, 3, time, 4, 4, generator=generator),
        lr={
            rate: torch.randn(batch, 3, rate.settled_tokens(time), 1, 1, generator=generator)
            for rate in (TWO, FOUR)
        },
        start=torch.arange(batch) * 4,
        length=torch.tensor(length or [time] * batch),
    )


def ask(spec: Noise, given: History, seed: int = 0) -> Query:
    places = range(given.batch)
    return NoiseMasker(spec)(given, TEXT, Draws.of(seed, 0, places, "test"))


@pytest.mark.slow
@pytest.mark.parametrize("level", ["min", "mean", "max"])
@pytest.mark.parametrize("contiguous", [0.0, 0.5, 1.0])
def test_keeps_the_contract(level: str, contiguous: float) -> None:
    check_masker(NoiseMasker(Noise(lr_level=level, contiguous=contiguous)))


def test_contract_catches_a_masker_that_noises_omega() -> None:
    class Careless(NoiseMasker):
        def _levels(self, *given) -> torch.Tensor:  # type: ignore[no-untyped-def]
            return super()._levels(*given).clamp_min(0.1)

    with pytest.raises(AssertionError, match="omega is not clean"):
        check_masker(Careless(Noise()))


def test_contract_catches_clean_lr_latents() -> None:
    class OnlyHr(NoiseMasker):
        def _lr_levels(self, *given) -> torch.Tensor:  # type: ignore[no-untyped-def]
            return torch.zeros_like(super()._lr_levels(*given))

    with pytest.raises(AssertionError, match="LR latent .* outside"):
        check_masker(OnlyHr(Noise()))


def test_contract_catches_a_masker_that_draws_samples_from_one_generator() -> None:
    class Shared(NoiseMasker):
        def __call__(self, history, text, draws):  # type: ignore[no-untyped-def]
            each = (draws.shared,) * history.batch
            return super().__call__(history, text, attrs.evolve(draws, each=each))

    with pytest.raises(AssertionError, match="without its neighbours"):
        check_masker(Shared(Noise(clean=0.0)))


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(4)), st.integers(1, 3), st.integers(0, 99))
def test_a_batch_dealt_out_is_the_whole_batch(order: list[int], cut: int, seed: int) -> None:
    given = attrs.evolve(history(), pixels=torch.zeros(4, 3, 49, 8, 8, dtype=torch.uint8))
    whole = ask(Noise(clean=0.3), given, seed)
    for places in (order[:cut], order[cut:]):
        draws = Draws.of(seed, 0, places, "test")
        part = NoiseMasker(Noise(clean=0.3))(given.select(places), TEXT.select(places), draws)
        assert torch.equal(part.omega, whole.omega[places])
        assert torch.equal(part.history.latents, whole.history.latents[places])
        assert torch.equal(part.history.pixels, whole.history.pixels[places])
        for rate in (TWO, FOUR):
            assert torch.equal(part.history.lr[rate], whole.history.lr[rate][places])


def test_lr_latent_takes_the_level_of_what_it_covers() -> None:
    reduce = {"min": torch.amin, "mean": torch.mean, "max": torch.amax}
    for name, of in reduce.items():
        query = ask(Noise(clean=0.0, lr_level=name, counts=(2,)), history())
        for rate in (TWO, FOUR):
            assert torch.equal(query.lr_levels[rate][:, 0], query.levels[:, 0])
            for j in range(1, query.lr_levels[rate].shape[1]):
                first, last = rate.time * (j - 1) + 1, rate.time * j
                expected = of(query.levels[:, first : last + 1], dim=1)
                assert torch.allclose(query.lr_levels[rate][:, j], expected)


def test_min_leaves_lr_latents_that_cover_omega_clean_and_no_others() -> None:
    given = history()
    query = ask(Noise(clean=0.0), given)
    for rate in (TWO, FOUR):
        asked = torch.zeros_like(query.levels, dtype=torch.bool).scatter(1, query.omega, True)
        covering = torch.stack(
            [
                asked[:, max(0, rate.time * (j - 1) + 1) : rate.time * j + 1].any(dim=1)
                for j in range(given.lr[rate].shape[2])
            ],
            dim=1,
        )
        same = (query.history.lr[rate] == given.lr[rate]).all(dim=(1, 3, 4))
        assert torch.equal(same, covering)


def test_noise_is_equation_1_at_the_level_told() -> None:
    given = attrs.evolve(history(65), lr={})
    zero = attrs.evolve(given, latents=torch.zeros_like(given.latents))
    query = ask(Noise(clean=0.0, low=0.2, counts=(1,)), zero)
    spread = query.history.latents.std(dim=(1, 3, 4))
    masked = query.levels > 0
    assert float((spread[masked] / query.levels[masked] - 1).abs().mean()) < 0.2
    other = ask(Noise(clean=0.0, low=0.2, counts=(1,)), given)
    expected = (1 - query.levels)[:, None, :, None, None] * given.latents
    assert torch.allclose(other.history.latents, expected + query.history.latents, atol=1e-6)


def test_lr_noise_is_its_own() -> None:
    given = history(9)
    lr = {TWO: given.latents[:, :, ::2].clone()}
    query = ask(Noise(clean=0.0, counts=(1,)), attrs.evolve(given, lr=lr))
    hr = query.history.latents[:, :, ::2] - given.latents[:, :, ::2]
    both = torch.stack([hr.flatten(), (query.history.lr[TWO] - lr[TWO]).flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.9


def test_chances_are_kept() -> None:
    given = attrs.evolve(history(), lr={})
    queries = [ask(Noise(counts=(2, 4), contiguous=0.25, clean=0.3), given, s) for s in range(150)]
    runs = torch.cat([(q.omega.diff(dim=1) == 1).all(dim=1) for q in queries]).float()
    clean = torch.cat([q.levels.amax(dim=1) == 0 for q in queries]).float()
    counts = torch.tensor([q.omega.shape[1] for q in queries]).float()
    assert 0.2 < float(runs.mean()) < 0.42  # scattered pairs are runs by chance, now and then
    assert 0.24 < float(clean.mean()) < 0.36
    assert 2.7 < float(counts.mean()) < 3.3


def test_every_frame_is_asked_as_often_as_any_other_when_scattered() -> None:
    given = attrs.evolve(history(5), lr={})
    spec = Noise(counts=(1,), contiguous=0.5)
    asked = torch.cat([ask(spec, given, seed).omega.flatten() for seed in range(300)])
    shares = torch.bincount(asked, minlength=5) / len(asked)
    assert float((shares - 0.2).abs().max()) < 0.04


def test_clean_sample_is_clean_everywhere() -> None:
    given = history()
    query = ask(Noise(clean=1.0), given)
    assert torch.equal(query.history.latents, given.latents)
    assert all(torch.equal(query.history.lr[rate], given.lr[rate]) for rate in given.lr)
    assert not bool(query.levels.any())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 13), min_size=4, max_size=4), st.integers(0, 99))
def test_ragged_batches_ask_inside_every_length(length: list[int], seed: int) -> None:
    given = history(length=length)
    query = ask(Noise(counts=(1, 2, 4, 8)), given, seed)
    assert query.omega.shape[1] <= min(length)
    assert bool((query.omega < given.length[:, None]).all())
    assert torch.equal(query.frames, query.omega + given.start[:, None])


def test_one_latent_and_half_precision() -> None:
    given = history(1).to("cpu", torch.bfloat16)
    query = ask(Noise(clean=0.0), given)
    assert query.omega.tolist() == [[0]] * 4
    assert query.history.latents.dtype == torch.bfloat16
    assert torch.equal(query.targets, given.latents)


def test_pixels_are_hidden_with_their_latents() -> None:
    pixels = torch.randint(256, (4, 3, 49, 8, 8), dtype=torch.uint8)
    query = ask(Noise(clean=0.0, counts=(1,)), attrs.evolve(history(), pixels=pixels))
    shown = (query.history.pixels == pixels).all(dim=(1, 3, 4))
    for row, latent in enumerate(query.omega[:, 0].tolist()):
        frames = set(range(4 * latent - 3, 4 * latent + 1)) if latent else {0}
        assert set(shown[row].nonzero().flatten().tolist()) == frames


def test_empty_history_is_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        ask(Noise(), history(length=[3, 0, 2, 1]))
