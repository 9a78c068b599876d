"""The held-out loss: a fixed grid of draws, each with its own error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from data.splits import spread
from diffusion.denoiser import Denoiser
from diffusion.parameterization import PredictNoise
from evaluation.network_metrics import _mean_error
from metrics.held_out_loss import HeldOut, about_the_curve, held_out_errors, stratified
from runtime.seeds import generator
from tests.helpers.terms import SCHEDULE, images


class Told(nn.Module):
    """Predicts 0 and keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, timestep, condition):
        self.seen.append((x, timestep, condition.get("label")))
        return torch.zeros_like(x)


def judged(labels=True, draws=150, rows=None):
    network = Told()
    pictures = images(9)
    held = held_out_errors(
        Denoiser(network, SCHEDULE, PredictNoise()),
        pictures,
        np.arange(9) if labels else None,
        np.array([7, 2, 5, 0]) if rows is None else rows,
        draws,
    )
    return held, network.seen, pictures


def test_t_is_spread_evenly_and_every_image_has_as_many():
    """Of 150 draws 4 images take 36 each: the multiple of four that all can have."""
    held, seen, _ = judged()
    t = torch.cat([timestep for _, timestep, _ in seen]) + 1
    assert sorted(t.tolist()) == sorted(1 + (2 * k + 1) * 100 // 288 for k in range(144))
    assert held.decile.tolist() == [(k - 1) // 10 for k in t.tolist()]
    label = torch.cat([label for *_, label in seen])
    assert label.tolist() == [row for row in (0, 2, 5, 7) for _ in range(36)]
    assert label.tolist() == np.array([0, 2, 5, 7])[held.image].tolist()


@pytest.mark.parametrize("labelled", [True, False])
def test_class_folders_have_their_shares_and_an_image_a_t_in_each_quarter(labelled):
    """Six folders, read in the order of their paths: 512 draws used to see the first two and a half
    of them."""
    sizes = [310, 298, 305, 287, 300, 300]
    labels = np.repeat(np.arange(6), sizes)
    network, rows = Told(), 50 + np.arange(1800)  # behind the training images
    labels = np.concatenate([np.zeros(50, dtype=np.int64), labels])
    pictures = (np.arange(1850) % 256).astype(np.uint8)[:, None, None, None] + np.zeros(
        (1, 8, 8, 3), np.uint8
    )
    held = held_out_errors(
        Denoiser(network, SCHEDULE, PredictNoise()),
        pictures,
        labels if labelled else None,
        rows,
        512,
    )
    x, timestep = (torch.cat(part) for part in list(zip(*network.seen))[:2])
    assert len(x) == len(held.errors) == 512 and held.image.bincount().tolist() == [4] * 128
    quarter = timestep * 4 // 100
    assert all(quarter[held.image == k].sort().values.tolist() == [0, 1, 2, 3] for k in range(128))
    chosen = spread(rows, 128, labels if labelled else None)
    for c, size in enumerate(sizes):
        assert abs((labels[chosen] == c).sum() - 128 * size / 1800) < (1 if labelled else 2)
    bar = SCHEDULE.alpha_bar[timestep + 1].view(-1, 1, 1, 1)
    value = ((x.double() - (1 - bar).sqrt() * noise_of(x)) / bar.sqrt()).mean(
        (1, 2, 3)
    ) * 127.5 + 127.5
    assert value.round().long().tolist() == pictures[chosen[held.image.numpy()], 0, 0, 0].tolist()


def noise_of(x):
    return torch.cat(
        [
            torch.randn(part.shape, generator=generator("held-out", 64 * k))
            for k, part in enumerate(x.split(64))
        ]
    ).double()


def test_fewer_rows_than_draws_allow_take_more_t_of_each():
    held, seen, _ = judged(draws=512, rows=np.arange(9))
    assert held.image.bincount().tolist() == [56] * 9  # 504 of 512
    t = torch.cat([timestep for _, timestep, _ in seen])
    for k in range(9):
        assert ((t[held.image == k] * 4 // 100).bincount() == 14).all()


def test_an_error_is_that_of_its_own_draw():
    """Who predicts 0 is wrong by the noise, which is what x_t holds beside the image."""
    held, seen, pictures = judged()
    for k, (x, timestep, label) in enumerate(zip(*(torch.cat(part) for part in zip(*seen)))):
        bar = SCHEDULE.alpha_bar[timestep + 1]
        noise = (
            x.double() - bar.sqrt() * torch.from_numpy(pictures[label] / 127.5 - 1).permute(2, 0, 1)
        ) / (1 - bar).sqrt()
        assert held.errors[k].item() == pytest.approx(noise.square().mean().item(), rel=1e-4)


def test_values_are_means_of_the_errors():
    held, *_ = judged(draws=12)
    values = held.values()
    assert values["loss"] == pytest.approx(np.mean(held.errors.numpy()))
    by_hand = {
        d: [e for e, k in zip(held.errors.tolist(), held.decile.tolist()) if k == d]
        for d in range(10)
    }
    assert {f"loss_t{d}": np.mean(e) for d, e in by_hand.items() if e} == pytest.approx(
        {k: v for k, v in values.items() if k != "loss"}
    )
    assert list(judged(draws=2)[0].values()) == ["loss", "loss_t1", "loss_t3", "loss_t6", "loss_t8"]


def test_without_labels_the_network_is_given_none_and_the_draws_are_the_same():
    (held, seen, _), (again, others, _) = (
        judged(labels=False, rows=np.array([0, 2, 5, 7])),
        judged(),
    )
    assert all(label is None for *_, label in seen)
    assert torch.equal(held.errors, again.errors) and torch.equal(seen[1][0], others[1][0])


def made_up(
    seed: int, of_images: float, of_noise: float, n: int = 64, each: int = 4
) -> tuple[HeldOut, torch.Tensor]:
    """Errors that fall with t as a network's do, and differ by image and by draw; and what each
    image adds."""
    random = torch.Generator().manual_seed(seed)
    t, image = stratified(n, each, 1000), torch.arange(n).repeat_interleave(each)
    added = of_images * torch.randn(n, generator=random, dtype=torch.float64)
    noise = of_noise * torch.randn(n * each, generator=random, dtype=torch.float64)
    curve = 0.02 + 0.9 * (-t.flatten().double() / 120).exp()
    return HeldOut(curve + added[image] + noise, t.flatten(), image, 1000), added


def test_the_interval_is_of_the_images_and_not_of_their_t():
    """Images that are all alike, and errors that are known: nothing is unknown about the mean,
    though the errors run from 0.02 to 0.9."""
    held, _ = made_up(0, 0.0, 0.0)
    found = _mean_error(held)
    naive = torch.stack([held.errors[held.image == k].mean() for k in range(64)]).std().item() / 8
    assert 0 < found["high"] - found["low"] < 0.15 * 4 * naive


@pytest.mark.parametrize(("n", "each"), [(64, 4), (32, 12)])
def test_the_interval_holds_the_truth(n, each):
    """Of 400 sets of images whose mean error is known."""
    truth = _mean_error(made_up(0, 0.0, 0.0, n, each)[0])["value"]
    found = [_mean_error(made_up(seed, 0.02, 0.02, n, each)[0]) for seed in range(1, 401)]
    assert 0.91 * 400 <= sum(e["low"] <= truth <= e["high"] for e in found) <= 0.98 * 400
    spread = np.std([e["value"] for e in found])
    assert np.mean([np.std(e["replicates"]) for e in found]) == pytest.approx(spread, rel=0.2)


def test_what_images_add_is_linear_in_the_errors():
    """So that replicates of two runs, each about its own curve, differ as the runs do."""
    (a, _), (b, _) = made_up(1, 0.02, 0.01), made_up(2, 0.01, 0.03)
    difference = about_the_curve(a.errors, a.t) - about_the_curve(b.errors, b.t)
    torch.testing.assert_close(
        about_the_curve(a.errors - b.errors, a.t), difference, rtol=1e-12, atol=1e-14
    )
    straight = 3 + 0.01 * a.t.double()  # along the grid, which is even, a line
    assert about_the_curve(straight, a.t).abs().max() < 0.02


def test_few_draws_have_a_mean_and_no_curve():
    for draws in (1, 2):
        errors = torch.arange(draws, dtype=torch.float64)
        assert torch.equal(about_the_curve(errors, torch.arange(draws)), errors - errors.mean())
