"""The Inception score against torch-fidelity and torchmetrics, and its limits."""

from __future__ import annotations

import runtime.torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from metrics.inception_score import inception_score
from runtime.errors import UserError


def logits(n, classes, seed=0):
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n, splits", [(100, 10), (103, 10), (64, 1), (50, 7)])
def test_it_equals_torch_fidelity(n, splits):
    x = logits(n, 20)
    other = isc_features_to_metric(x, splits, shuffle=False)
    assert inception_score(x, splits) == pytest.approx(
        (other["inception_score_mean"], other["inception_score_std"]), rel=1e-9
    )


def test_its_limits():
    """Sure and even over the classes: as many as there are. Unsure, or always one class: 1."""
    sure = 200 * torch.eye(8).repeat(20, 1)
    assert inception_score(sure) == pytest.approx((8, 0))
    assert inception_score(torch.zeros(40, 8)) == pytest.approx((1, 0))
    assert inception_score(sure[:1].repeat(40, 1)) == pytest.approx((1, 0))
    # probabilities of 0
    assert inception_score(1e5 * torch.eye(8).repeat(20, 1)) == pytest.approx((8, 0))


def test_what_cannot_be_judged_is_said():
    with pytest.raises(UserError, match="19, where this metric needs 20"):
        inception_score(logits(19, 5))
    with pytest.raises(UserError, match="40 of 40 rows"):
        inception_score(logits(40, 5) * float("nan"))
