"""Classifiers on real and generated images: the training against a loop written from torch alone,
the area against scikit-learn's, and what copies and new images bring."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn

from metrics import classification as c
from metrics.auroc import macro_auroc
from metrics.classification import Labelled, classification, log_odds, train_classifier
from metrics.over_seeds import mean_over
from runtime.seeds import derive, generator

CPU = torch.device("cpu")


def bars(n: int, seed: int, classes: int = 2, noise: float = 60.0, side: int = 8) -> Labelled:
    """Noisy gray images with a bar whose direction is their class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    y, x = np.mgrid[:side, :side]
    angle = labels * math.pi / classes
    across = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    field = 128 + 40 * np.sin(1.6 * across + rng.uniform(0, 6.3, (n, 1, 1)))
    pixels = (field + rng.normal(0, noise, field.shape)).clip(0, 255).astype(np.uint8)
    return Labelled(pixels[..., None], labels.astype(np.int64), np.arange(n))


STEPS = 50  # as many show what is right as 150 do
REAL, NEW = bars(24, seed=1), bars(400, seed=5)
TEST = bars(200, seed=99)


@pytest.fixture(autouse=True, scope="module")
def fewer_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c, "STEPS", STEPS)
        yield


@pytest.fixture(scope="module")
def helped() -> dict:
    """Of new images of the same distribution."""
    return classification(REAL, NEW, TEST, [0, 1], 2, False, CPU)


def plain_training(sets: list[Labelled], classes: int, seed: int, flip: bool) -> nn.Module:
    """By PyTorch's own scheduler and modules."""
    torch.manual_seed(derive("classifier", seed))
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding="same"),
        nn.GroupNorm(8, 16),
        nn.SiLU(),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Conv2d(16, 32, 3, padding="same"),
        nn.GroupNorm(8, 32),
        nn.SiLU(),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Conv2d(32, 64, 3, padding="same"),
        nn.GroupNorm(8, 64),
        nn.SiLU(),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Conv2d(64, 64, 3, padding="same"),
        nn.GroupNorm(8, 64),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        draw = generator("classifier batch", seed, step)
        images, labels = [], []
        for each in sets:
            for k in torch.randint(len(each.rows), (32 // len(sets),), generator=draw).tolist():
                images.append(each.images[each.rows[k], :, :, 0] / 127.5 - 1)
                labels.append(int(each.labels[each.rows[k]]))
            if flip:
                for k in (torch.rand(32 // len(sets), generator=draw) < 0.5).nonzero().flatten():
                    place = len(images) - 32 // len(sets) + int(k)
                    images[place] = images[place][:, ::-1].copy()
        optimizer.zero_grad()
        x = torch.from_numpy(np.stack(images)[:, None]).float()
        p = network(x).log_softmax(1)
        (-p[torch.arange(32), labels].mean()).backward()
        optimizer.step()
        cosine.step()
    return network.eval()


@pytest.mark.parametrize(("both", "flip"), [(False, True), (True, False)])
def test_a_classifier_is_trained_as_torch_alone_would(both, flip):
    sets = [bars(30, 1)._replace(rows=np.arange(5, 30)), bars(20, 2)][: 1 + both]
    before = torch.random.get_rng_state()
    ours = train_classifier(sets, 2, 4, flip, CPU)
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        theirs = plain_training(sets, 2, 4, flip)
    x = torch.from_numpy(TEST.images / 127.5 - 1).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=2e-3, atol=2e-3)
        assert ours(x).std() > 0.5


def test_the_area_on_real_images_is_scikit_learns(helped):
    """Of the class' probability, by another formula."""
    areas = []
    for seed in range(3):
        network = train_classifier([REAL], 2, seed, False, CPU)
        x = torch.from_numpy(TEST.images / 127.5 - 1).float().permute(0, 3, 1, 2)
        with torch.no_grad():
            p = network(x).double().softmax(1)
        areas.append(roc_auc_score(TEST.labels, p[:, 1].numpy()))
    one = helped["real"]
    assert one["value"] == pytest.approx(np.mean(areas), abs=1e-9) and one["images"] == 100
    assert one["low"] < one["value"] < one["high"] < 1 and len(one["replicates"]) == 200


def test_log_odds_do_not_round_where_probabilities_do():
    class Sure(nn.Module):
        def forward(self, x):
            return torch.stack([x.flatten(1)[:, 0] * 100, x.flatten(1)[:, 0] * -100], dim=1)

    images = np.array([0, 250, 255], np.uint8).reshape(3, 1, 1, 1)
    judged = Labelled(images, np.zeros(3, np.int64), np.arange(3))
    odds = log_odds(Sure(), judged, CPU)
    assert odds[2, 0] > odds[1, 0] > odds[0, 0] and torch.equal(odds[:, 0], -odds[:, 1])
    assert odds[2, 0].item() == pytest.approx(200)
    three = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    class Fixed(nn.Module):
        def forward(self, x):
            return three

    judged = Labelled(np.zeros((4, 1, 1, 1), np.uint8), np.zeros(4, np.int64), np.arange(4))
    torch.testing.assert_close(
        log_odds(Fixed(), judged, CPU), torch.logit(three.double().softmax(1))
    )


def test_copies_add_nothing_and_new_images_help(helped):
    """What a memoriser gives out is the training set again."""
    copies = classification(REAL, REAL, TEST, [0, 1], 2, False, CPU)
    real = copies["real"]
    assert copies["synthetic"] == copies["both"] == real == helped["real"]
    assert copies["gain"]["value"] == copies["gain"]["low"] == copies["gain"]["high"] == 0
    assert helped["synthetic"]["value"] > 0.9 > real["value"] and helped["gain"]["low"] > 0


def test_noise_teaches_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    noise = Labelled(pixels, np.arange(200) % 2, np.arange(200))
    odds = log_odds(train_classifier([noise], 2, 0, False, CPU), TEST, CPU)
    assert 0.3 < macro_auroc(odds, torch.from_numpy(TEST.labels), [0, 1]).item() < 0.7


def test_the_interval_holds_the_classifiers_seeds_and_the_images(helped):
    """That of mean_over, of values and replicates that are computed here; the gain is paired."""
    labels = torch.from_numpy(TEST.labels)
    counts = c.resampled_by_class(labels, 200, "classification")

    def areas(sets):
        for seed in range(3):
            odds = log_odds(train_classifier(sets, 2, seed, False, CPU), TEST, CPU)
            drawn = macro_auroc(odds, labels, [0, 1], counts)
            yield macro_auroc(odds, labels, [0, 1]).item(), drawn

    alone, both = list(areas([REAL])), list(areas([REAL, NEW]))
    low, high = mean_over([v for v, _ in alone], [r.tolist() for _, r in alone], 100).interval()
    assert (helped["real"]["low"], helped["real"]["high"]) == pytest.approx((low, high))
    gains = [b - a for (a, _), (b, _) in zip(alone, both)]
    paired = [(r - q).tolist() for (_, q), (_, r) in zip(alone, both)]
    assert helped["gain"]["value"] == pytest.approx(np.mean(gains))
    assert (helped["gain"]["low"], helped["gain"]["high"]) == pytest.approx(
        mean_over(gains, paired, 100).interval()
    )


def test_classes_that_one_side_lacks_are_not_judged():
    labels = np.array([0, 0, 1, 1, 2, 3, 3, 0, 1, 1, 2, 2, 3, 0])
    images = np.zeros((14, 8, 8, 1), np.uint8)
    train = Labelled(images, labels, np.array([0, 1, 2, 4]))  # classes 0, 1, 2
    test = Labelled(images, labels, np.array([5, 6, 7, 13, 8, 9, 10]))  # two of 3, 0, 1, one of 2
    assert c.judged_classes(train, test) == [0, 1]


def test_several_classes_and_images_of_any_shape():
    """Three classes of which two are judged, colour, sides that are odd and above 64."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 70, 33, 3), dtype=np.uint8)
    assert c.seen(images[:2], CPU).shape == (2, 3, 64, 30)
    small = Labelled(images[:, :9, :7], np.arange(30) % 3, np.arange(30))
    test = small._replace(rows=np.flatnonzero(small.labels < 2))
    network = c.build_classifier(3, 3, 0)
    assert log_odds(network, test, CPU).shape == (20, 3)
    labels = torch.from_numpy(test.labels[test.rows])
    assert 0 < macro_auroc(log_odds(network, test, CPU), labels, [0, 1]).item() < 1


def test_what_is_scaled_is_what_pytorch_scales():
    images = np.random.default_rng(1).integers(0, 256, (1, 128, 128, 1), dtype=np.uint8)
    x = torch.from_numpy(images / 127.5 - 1).permute(0, 3, 1, 2).float()
    expected = F.interpolate(x, 64, mode="bilinear", antialias=True)
    torch.testing.assert_close(c.seen(images, CPU), expected)
