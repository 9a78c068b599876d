"""DPMs-ANT against the formulas worked by hand: linear denoisers and a logistic classifier, whose
gradients are known."""

from __future__ import annotations

import contextlib
import copy
import logging
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data.pixels import to_x0
from diffusion import schedule as schedules
from diffusion.denoiser import Denoiser
from diffusion.parameterization import PredictNoise, PredictVelocity, PredictX0
from runtime.config_schema import build
from runtime.errors import UserError
from tests.helpers.terms import SCHEDULE, batch, dataset, images, start_of, unet
from transfer import ant
from transfer.ant import (
    AdversarialNoise,
    Classifier,
    classifier_of,
    evaluating,
    normalized,
    towards_target,
)

SOURCE = dataset(images(6, seed=1))
VALUES = 3 * 8 * 8


class Linear(nn.Module):
    """The output is A x, for any matrix A over the values of an image."""

    def __init__(self, seed: int = 0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.A = nn.Parameter(
            torch.randn(VALUES, VALUES, generator=draw, dtype=torch.float64) / VALUES**0.5
        )

    def forward(self, x, timestep, condition):
        return (x.flatten(1) @ self.A.T).view_as(x)


class Logistic(nn.Module):
    """Log odds w x + t / 100, so that grad log p = (1 - p) w."""

    def __init__(self):
        super().__init__()
        self.w = torch.randn(
            VALUES, generator=torch.Generator().manual_seed(9), dtype=torch.float64
        )

    def forward(self, x, t):
        return x.flatten(1) @ self.w + t / 100


def built(tmp_path, network=None, classifier=None, parameterization=None, **settings):
    """A loss and its denoiser; the classifier trained for no step unless one is given."""
    start = start_of(network or Linear(), cache=tmp_path, parameterization=parameterization)
    loss = AdversarialNoise(start, images=lambda start: SOURCE, classifier_steps=0, **settings)
    loss.classifier = classifier or Logistic()
    return loss, start.denoiser


def value_of(loss, denoiser, x0, t, noise, condition=None):
    """As a training step goes: the noise is chosen, then the network is asked once."""
    noise = loss.noise_of(denoiser, x0, t, noise, condition)
    return loss(denoiser.forward_pass(x0, t, noise, condition))


def by_hand(A, x0, t, noise, w, steps, rate, guidance):
    """The loss of DPMs-ANT in numpy. x0, noise: [B, values]."""
    alpha_bar = SCHEDULE.alpha_bar.numpy()[t][:, None]
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    for _ in range(steps):
        error = noise - (alpha * x0 + sigma * noise) @ A.T
        noise = noise + rate * 2 * (error - sigma * (error @ A))  # 2 (1 - sigma A)^T error
        noise = (noise - noise.mean(1, keepdims=True)) / noise.std(1, ddof=1, keepdims=True)
    x_t = alpha * x0 + sigma * noise
    p = 1 / (1 + np.exp(-(x_t @ w + t / 100)))
    target = noise - guidance * (1 - alpha_bar) * (1 - p)[:, None] * w
    return ((x_t @ A.T - target) ** 2).mean(1)


@pytest.mark.parametrize(
    "steps, rate, guidance",
    [(0, 0.02, 0.0), (0, 0.02, 5.0), (1, 0.02, 0.0), (10, 0.02, 5.0), (3, 0.5, 2.0)],
)
def test_the_loss_follows_the_formula(tmp_path, steps, rate, guidance):
    loss, denoiser = built(tmp_path, ascent_steps=steps, ascent_rate=rate, guidance=guidance)
    x0, t, noise = batch(dtype=torch.float64)
    expected = by_hand(
        denoiser.network.A.detach().numpy(),
        x0.flatten(1).numpy(),
        t.numpy(),
        noise.flatten(1).numpy(),
        loss.classifier.w.numpy(),
        steps,
        rate,
        guidance,
    )
    value = value_of(loss, denoiser, x0, t, noise)
    assert value.shape == (4,)
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-9)


def test_the_defaults_are_those_of_the_paper(tmp_path):
    loss, _ = built(tmp_path)
    assert (loss.guidance, loss.ascent_steps, loss.ascent_rate) == (5.0, 10, 0.02)


@pytest.mark.parametrize("parameterization", [PredictX0(), PredictVelocity()])
def test_it_is_the_error_of_the_noise_whatever_the_network_predicts(tmp_path, parameterization):
    """A network that predicts something else, made to mean the same noise, has the same loss."""
    plain, denoiser = built(tmp_path, ascent_steps=3)
    x0, t, noise = batch(dtype=torch.float64)

    class Other(nn.Module):
        def forward(self, x, timestep, condition):
            eps = denoiser.network(x, timestep, condition)
            x0 = PredictNoise().decode(SCHEDULE, eps, x, timestep + 1)[0]
            return parameterization.encode(SCHEDULE, x0, eps, timestep + 1)

    other = Denoiser(Other(), SCHEDULE, parameterization)
    torch.testing.assert_close(
        value_of(plain, other, x0, t, noise),
        value_of(plain, denoiser, x0, t, noise),
        rtol=1e-7,
        atol=1e-7,
    )


def test_ascent_finds_noise_that_is_harder_and_still_of_unit_variance(tmp_path):
    loss, denoiser = built(tmp_path, unet().double(), guidance=0.0, ascent_steps=10)
    x0, t, noise = batch(dtype=torch.float64)
    hard = loss.noise_of(denoiser, x0, t, noise, None)

    def error(noise):
        return (
            (denoiser(SCHEDULE.add_noise(x0, noise, t), t).noise - noise)
            .square()
            .flatten(1)
            .mean(1)
        )

    assert (error(hard) > error(normalized(noise))).all()
    torch.testing.assert_close(hard.mean((1, 2, 3)), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(hard.flatten(1).std(1), torch.ones(4, dtype=torch.float64))
    assert not hard.requires_grad


def test_the_ascent_leaves_the_parameters_without_a_gradient_and_the_target_is_a_constant(tmp_path):
    loss, denoiser = built(tmp_path, ascent_steps=2)
    x0, t, noise = batch(dtype=torch.float64)
    with torch.no_grad():
        # works without a gradient around it, too
        hard = loss.noise_of(denoiser, x0, t, noise, None)
    assert denoiser.network.A.grad is None
    value_of(loss, denoiser, x0, t, noise).sum().backward()
    x_t = SCHEDULE.add_noise(x0, hard, t)
    factor = (1 - SCHEDULE.alpha_bar[t])[:, None]
    w = loss.classifier.w
    p = torch.sigmoid(x_t.flatten(1) @ w + t / 100)
    target = hard.flatten(1) - 5 * factor * (1 - p)[:, None] * w
    x = x_t.flatten(1)
    torch.testing.assert_close(
        denoiser.network.A.grad, 2 / VALUES * (x @ denoiser.network.A.detach().T - target).T @ x
    )


def test_it_is_built_from_a_config(tmp_path):
    node = {
        "_target_": "transfer.ant.AdversarialNoise",
        "_partial_": True,
        "guidance": 2,
        "classifier_steps": 0,
        "images": {"_target_": "tests.helpers.terms.source_images", "_partial_": True, "n": 6},
    }
    loss = build(node, ["transfer", "tests"], "transfer.loss")(start_of(Linear(), cache=tmp_path))
    assert (loss.guidance, loss.ascent_steps) == (2, 10)
    with pytest.raises(
        UserError, match=r"transfer\.loss\.guidence: no such setting; did you mean guidance"
    ):
        build(node | {"guidence": 1.0}, ["transfer", "tests"], "transfer.loss")


def test_the_condition_reaches_each_pass(tmp_path):
    seen = []

    class Told(Linear):
        def forward(self, x, timestep, condition):
            seen.append(condition)
            return super().forward(x, timestep, condition)

    loss, denoiser = built(tmp_path, Told(), ascent_steps=3)
    condition = {"label": torch.zeros(4, dtype=torch.long)}
    x0, t, noise = batch(dtype=torch.float64)
    value_of(loss, denoiser, x0, t, noise, condition)
    assert seen == [condition] * 4


def test_images_do_not_depend_on_their_batch(tmp_path):
    loss, denoiser = built(tmp_path)
    x0, t, noise = batch(dtype=torch.float64)
    together = value_of(loss, denoiser, x0, t, noise)
    alone = torch.cat(
        [value_of(loss, denoiser, *(x[i : i + 1] for x in (x0, t, noise))) for i in range(4)]
    )
    torch.testing.assert_close(together, alone)


def test_dropout_sleeps_in_the_ascent_and_draws_as_with_any_other_loss(tmp_path):
    network = unet(dropout=0.5).double()
    loss, denoiser = built(tmp_path, network, ascent_steps=3, guidance=0.0)
    x0, t, noise = batch(dtype=torch.float64)
    network.mid.eval()  # a part in another mode stays in it
    modes = [m.training for m in network.modules()]
    torch.manual_seed(1)
    value = value_of(loss, denoiser, x0, t, noise)
    after = torch.rand(1)
    assert [m.training for m in network.modules()] == modes
    still = copy.deepcopy(denoiser).eval()
    hard = loss.noise_of(still, x0, t, noise, None)
    torch.manual_seed(1)
    torch.testing.assert_close(
        value,
        (denoiser(SCHEDULE.add_noise(x0, hard, t), t).noise - hard).square().flatten(1).mean(1),
    )
    assert after == torch.rand(1)


def test_modes_come_back_after_an_error():
    network = unet()
    with pytest.raises(KeyError), evaluating(network):
        assert not any(m.training for m in network.modules())
        raise KeyError
    assert all(m.training for m in network.modules())


@pytest.mark.parametrize(
    "checkpointing, bf16, trained",
    [(False, False, ""), (True, False, ""), (False, False, "norm"), (True, True, "mid.")],
)
def test_frozen_parts_checkpointing_and_autocast(tmp_path, checkpointing, bf16, trained):
    """Against the plain way, with all of it trained, in float64."""
    network = unet(gradient_checkpointing=checkpointing).to(memory_format=torch.channels_last)
    classifier = Classifier(3)
    loss, denoiser = built(tmp_path, network, classifier, ascent_steps=3)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trained in name)
    x0, t, noise = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        value = value_of(loss, denoiser, x0, t, noise)
    value.mean().backward()
    plain = unet().double()
    plain.load_state_dict(network.state_dict())
    loss.classifier = copy.deepcopy(classifier).double()
    reference = value_of(
        loss, Denoiser(plain, SCHEDULE, PredictNoise()), x0.double(), t, noise.double()
    )
    reference.mean().backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), reference, rtol=0.1 if bf16 else 1e-4, atol=0)
    gradients = dict(plain.named_parameters())
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (trained in name), name
        if trained in name and not bf16:
            torch.testing.assert_close(
                parameter.grad.double(), gradients[name].grad, rtol=1e-2, atol=1e-4
            )


def test_no_step_waits_for_the_device(tmp_path, monkeypatch):
    """On the meta device, where there is no value to read (and no autocast)."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    loss, denoiser = built(tmp_path, unet(), Classifier(3), ascent_steps=2)
    denoiser, loss.classifier = denoiser.to("meta"), loss.classifier.to("meta")
    assert value_of(loss, denoiser, *(x.to("meta") for x in batch())).shape == (4,)


def test_guidance_is_the_gradient_of_the_log_probability_of_the_target():
    x, t = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 30, 60, 100])
    classifier = Logistic()
    p = torch.sigmoid(classifier(x, t))
    torch.testing.assert_close(
        towards_target(classifier, x, t), ((1 - p)[:, None] * classifier.w).view_as(x)
    )
    with torch.no_grad():
        torch.testing.assert_close(
            towards_target(classifier, x, t), ((1 - p)[:, None] * classifier.w).view_as(x)
        )
    classifier = Classifier(3)
    outside = towards_target(classifier, x, t)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(towards_target(classifier, x, t), outside)  # in its own precision


def test_the_classifier_is_asked_of_images_of_any_size_and_channels_and_knows_t():
    for channels, height, width in ((1, 8, 8), (3, 9, 14), (3, 32, 16)):
        classifier = Classifier(channels)
        x = torch.randn(2, channels, height, width)
        assert classifier(x, torch.tensor([1, 100])).shape == (2,)
        assert 1e5 < sum(p.numel() for p in classifier.parameters()) < 6e5
    with torch.no_grad():
        for block in classifier.down:
            block.conv2.weight.mul_(1e10)  # out of its quiet start
    early, late = (classifier(x, torch.full((2,), t)) for t in (1, 100))
    assert (early - late).abs().min() > 1e-3


# the classifier's training

BRIGHT = dataset((images(40, seed=2) // 4 + 170).astype(np.uint8))
COSINE = schedules.cosine(100)
DARK = dataset((images(40, seed=3) // 4 + 20).astype(np.uint8))


def trained(tmp_path, source=DARK, target=BRIGHT, steps=60, schedule=COSINE, **options):
    start = start_of(Linear(), target, cache=tmp_path / "cache", schedule=schedule, **options)
    return classifier_of(start, source, steps)


def test_the_classifier_tells_bright_from_dark_at_low_noise_and_not_in_pure_noise(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        classifier = trained(tmp_path)
    assert not any(p.requires_grad for p in classifier.parameters()) and not classifier.training
    fresh = [
        to_x0(torch.from_numpy(images(64, seed=seed) // 4 + level))
        for seed, level in ((6, 20), (7, 170))
    ]
    noise = torch.randn(2, 64, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def right(t):
        t = torch.full((64,), t)
        dark, bright = (
            classifier(COSINE.add_noise(x0, n, t), t) for x0, n in zip(fresh, noise, strict=True)
        )
        return ((dark < 0).float().mean() + (bright > 0).float().mean()).item() / 2

    assert right(10) > 0.95
    assert 0.35 < right(100) < 0.65
    said = re.search(
        r"classifier of source and target: right on 100% at t=10, \d+% at t=50, (\d+)% at t=100",
        caplog.text,
    )
    assert 30 < int(said[1]) < 70
    t = torch.full((64,), 10)
    x_t = COSINE.add_noise(fresh[0], noise[0], t)
    step = x_t + 1e-2 * F.normalize(towards_target(classifier, x_t, t).flatten(1)).view_as(x_t)
    assert (classifier(step, t) > classifier(x_t, t)).float().mean() > 0.9


def test_the_classifier_is_a_function_of_the_seed_and_of_nothing_around_it(tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = trained(tmp_path / "a", steps=5).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    two, other = (
        trained(tmp_path / "b", steps=5).state_dict(),
        trained(tmp_path / "b", steps=5, seed=1).state_dict(),
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["conv_in.weight"], other["conv_in.weight"])


def test_a_classifier_is_trained_once(tmp_path, monkeypatch, caplog):
    first = trained(tmp_path, steps=5).state_dict()
    (file,) = (tmp_path / "cache").glob("classifier-*.safetensors")
    content = file.read_bytes()
    monkeypatch.setattr(ant, "_train", lambda *_: pytest.fail("it is in the cache"))
    with caplog.at_level(logging.INFO):
        second = trained(tmp_path, steps=5).state_dict()
    assert (
        all(torch.equal(first[name], second[name]) for name in first)
        and file.read_bytes() == content
    )
    assert "right on" in caplog.text


@pytest.mark.parametrize("what", ["source", "target", "rows", "steps", "seed", "flip", "schedule"])
def test_what_makes_a_classifier_is_in_its_name(tmp_path, what):
    trained(tmp_path, steps=2)
    changed = copy.deepcopy(DARK if what == "source" else BRIGHT)
    changed.images[7, 0, 0, 0] += 1
    options = {
        "source": {"source": changed},
        "target": {"target": changed},
        "steps": {"steps": 3},
        "seed": {"seed": 1},
        "flip": {"flip": True},
        "rows": {"target": dataset(BRIGHT.images[:39])},
        "schedule": {"schedule": SCHEDULE},
    }[what]
    trained(tmp_path, **({"steps": 2} | options))
    assert len(list((tmp_path / "cache").glob("classifier-*.safetensors"))) == 2


def test_only_training_rows_count(tmp_path):
    trained(tmp_path, steps=2)
    more = dataset(np.concatenate([BRIGHT.images, images(3, seed=8)]))
    more.splits["train"] = more.splits["train"][:40]
    trained(tmp_path, target=more, steps=2)
    assert len(list((tmp_path / "cache").glob("classifier-*.safetensors"))) == 1
