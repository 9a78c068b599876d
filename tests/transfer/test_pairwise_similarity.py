"""Pairwise similarity against scipy and torch.distributions, Haar bands against numpy."""

from __future__ import annotations

import contextlib
import copy
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch.distributions import Categorical, kl_divergence

from diffusion.parameterization import PredictVelocity, PredictX0
from diffusion.variance import LearnedRange
from runtime.errors import UserError
from tests.helpers.terms import batch, seen_by, start_of, unet
from transfer.pairwise_similarity import (
    PairwiseSimilarity,
    high_frequencies,
    log_similarity,
    similarity_kl,
)


def similarities_by_hand(x: np.ndarray) -> np.ndarray:
    """[B, B - 1], pair by pair."""
    x = x.reshape(len(x), -1)
    rows = []
    for i in range(len(x)):
        cosines = [
            x[i] @ x[j] / (np.sqrt(x[i] @ x[i]) * np.sqrt(x[j] @ x[j]))
            for j in range(len(x))
            if j != i
        ]
        rows.append(scipy.special.softmax(cosines))
    return np.array(rows)


def kl_by_hand(source: np.ndarray, student: np.ndarray) -> float:
    """Mean over images of KL(source || student)."""
    return float(
        np.mean(
            [
                scipy.stats.entropy(p, q)
                for p, q in zip(
                    similarities_by_hand(source), similarities_by_hand(student), strict=True
                )
            ]
        )
    )


def haar_by_hand(x: np.ndarray) -> np.ndarray:
    """LH + HL + HH from the definition: the filters' outer products, laid on every 2x2 block."""
    low, high = np.array([1, 1]) / np.sqrt(2), np.array([-1, 1]) / np.sqrt(2)
    filters = [np.outer(low, high), np.outer(high, low), np.outer(high, high)]
    B, C, H, W = x.shape
    out = np.zeros((B, C, H // 2, W // 2))
    for i in range(H // 2):
        for j in range(W // 2):
            block = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            out[:, :, i, j] = sum((block * f).sum((2, 3)) for f in filters)
    return out


def pictures(seed: int, n: int = 5, height: int = 6, width: int = 8) -> torch.Tensor:
    return torch.randn(
        n, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def test_similarities_leave_out_an_image_s_own():
    x = pictures(0)
    np.testing.assert_allclose(
        log_similarity(x).exp().numpy(), similarities_by_hand(x.numpy()), rtol=1e-12
    )
    # cosines 0, 1/sqrt 2, 1/sqrt 2
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]], dtype=torch.float64)
    e = math.exp(math.sqrt(0.5))
    expected = [[1 / (1 + e), e / (1 + e)], [1 / (1 + e), e / (1 + e)], [0.5, 0.5]]
    torch.testing.assert_close(log_similarity(x).exp(), torch.tensor(expected, dtype=torch.float64))


def test_kl_is_of_the_source_to_the_student():
    source, student = pictures(0), pictures(1)
    value = similarity_kl(source, student)
    assert value.item() == pytest.approx(kl_by_hand(source.numpy(), student.numpy()), rel=1e-10)
    assert value.item() != pytest.approx(kl_by_hand(student.numpy(), source.numpy()), rel=1e-3)
    by_torch = kl_divergence(
        *(Categorical(torch.from_numpy(similarities_by_hand(x.numpy()))) for x in (source, student))
    )
    torch.testing.assert_close(value, by_torch.mean())


def test_published_weights_are_ours_times_the_number_of_other_images():
    """KLDivLoss() of 3 images, as in the published code, is half of our KL."""
    source, student = pictures(0, n=3), pictures(1, n=3)
    p, q = (torch.from_numpy(similarities_by_hand(x.numpy())) for x in (source, student))
    with pytest.warns(UserWarning, match="batchmean"):
        published = torch.nn.KLDivLoss()(q.log(), p)
    torch.testing.assert_close(2 * published, similarity_kl(source, student))


@pytest.mark.parametrize("height, width", [(6, 8), (7, 8), (8, 5)])
def test_haar_bands_follow_the_definition(height, width):
    x = pictures(2, height=height, width=width)
    np.testing.assert_allclose(
        high_frequencies(x).numpy(), haar_by_hand(x.numpy()), rtol=1e-12, atol=1e-14
    )


def test_haar_bands_of_known_images():
    flat = torch.full((1, 1, 4, 4), 0.7)
    across = torch.tensor([-1.0, 1.0, -1.0, 1.0]).expand(1, 1, 4, 4)  # LH = 2, no other band
    board = across * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]  # HH = -2
    assert (high_frequencies(flat) == 0).all()
    assert (high_frequencies(across) == 2).all()
    assert (high_frequencies(across.mT) == 2).all()
    assert (high_frequencies(board) == -2).all()


def penalized(weights: tuple[float, float, float], network=None, **options):
    start = start_of(network or unet().double(), **options)
    source = copy.deepcopy(start.denoiser)
    penalty = PairwiseSimilarity(
        start, weight=weights[0], high_frequency_weight=weights[1], reconstruction_weight=weights[2]
    )
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in start.denoiser.network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return start, source, penalty


@pytest.mark.parametrize("parameterization", [None, PredictX0(), PredictVelocity()])
@pytest.mark.parametrize(
    "weights", [(2.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, 0.5), (2.0, 3.0, 0.5)]
)
def test_the_penalty_is_the_sum_of_its_three_terms(weights, parameterization):
    start, source, penalty = penalized(weights, parameterization=parameterization)
    seen = seen_by(start.denoiser, dtype=torch.float64)
    old, new = (
        x.detach().numpy()
        for x in (source(seen.x_t, seen.t).x0, start.denoiser(seen.x_t, seen.t).x0)
    )
    bands = [haar_by_hand(x) for x in (old, new, seen.x0.numpy())]
    terms = (
        kl_by_hand(old, new),
        kl_by_hand(bands[0], bands[1]),
        float(((bands[1] - bands[2]) ** 2).mean()),
    )
    assert all(term > 1e-6 for term in terms)
    assert penalty(seen).item() == pytest.approx(
        sum(w * term for w, term in zip(weights, terms, strict=True)), rel=1e-9
    )


def test_high_frequencies_count_with_a_learned_variance_and_without():
    for network, variance in ((unet(), None), (unet(out_channels=6), LearnedRange())):
        start = start_of(network.double())
        if variance:
            start.denoiser.variance = variance
        penalty = PairwiseSimilarity(
            start, weight=0.0, high_frequency_weight=1.0, reconstruction_weight=1.0
        )
        assert penalty(seen_by(start.denoiser, dtype=torch.float64)) > 0.01


def test_similarities_cost_nothing_at_the_start_and_less_along_the_gradient():
    start = start_of(unet().double())
    penalty = PairwiseSimilarity(
        start, weight=1.0, high_frequency_weight=1.0, reconstruction_weight=0.0
    )
    assert abs(penalty(seen_by(start.denoiser, dtype=torch.float64)).item()) < 1e-12
    start, _, penalty = penalized((1.0, 1.0, 0.0))
    before = penalty(seen_by(start.denoiser, dtype=torch.float64))
    before.backward()
    with torch.no_grad():
        for parameter in start.denoiser.network.parameters():
            parameter -= 1e-2 * parameter.grad
    assert 0 < penalty(seen_by(start.denoiser, dtype=torch.float64)) < before
    assert all(parameter.grad is None for parameter in penalty.source.parameters())


def test_autocast_does_not_round_the_cosines():
    start, _, penalty = penalized((1.0, 1.0, 1.0), unet())
    with torch.autocast("cpu", torch.bfloat16):
        seen = seen_by(start.denoiser)
        inside = penalty(seen)
        old = penalty.source(seen.x_t, seen.t).x0
    bands = [haar_by_hand(x.double().detach().numpy()) for x in (old, seen.prediction.x0, seen.x0)]
    expected = (
        kl_by_hand(old.double().numpy(), seen.prediction.x0.double().detach().numpy())
        + kl_by_hand(*bands[:2])
        + ((bands[1] - bands[2]) ** 2).mean()
    )
    assert inside.dtype == torch.float32 and inside.item() == pytest.approx(expected, rel=1e-5)


def test_a_condition_reaches_the_source():
    start, source, penalty = penalized((1.0, 0.0, 0.0), unet(classes=3).double())
    condition = {"label": torch.tensor([0, 1, 2, 3])}
    seen = seen_by(start.denoiser, dtype=torch.float64, condition=condition)
    old = source(seen.x_t, seen.t, condition).x0.detach().numpy()
    assert penalty(seen).item() == pytest.approx(
        kl_by_hand(old, seen.prediction.x0.detach().numpy()), rel=1e-9
    )


def test_no_step_waits_for_the_device(monkeypatch):
    """On the meta device, where there is no value to read (and no autocast)."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    start = start_of(unet())
    start.denoiser.to("meta")
    penalty = PairwiseSimilarity(
        start, weight=1.0, high_frequency_weight=1.0, reconstruction_weight=1.0
    )
    x0, t, _ = (x.to("meta") for x in batch())
    penalty(start.denoiser.forward_pass(x0, t, torch.zeros_like(x0))).backward()


def test_two_images_are_refused_with_the_settings_that_give_more():
    start, _, penalty = penalized((1.0, 1.0, 1.0))
    assert penalty(seen_by(start.denoiser, n=3, dtype=torch.float64)) > 0
    with pytest.raises(UserError, match=r"has 2.*train\.batch_size.*train\.accumulation"):
        penalty(seen_by(start.denoiser, n=2, dtype=torch.float64))
