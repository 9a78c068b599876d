"""Do images keep their mean brightness, which varies from image to image and shows long before the
image itself?

The data: x0 = b 1 + W z of D = H W C values, b ~ N(0.2, 0.2^2), a few directions W that sum to 0.
Its exact denoiser is linear, so every sampler is an affine map of what it draws, along 1 / sqrt(D)
that of one number: with the variance 0.04 D, which other directions do not have. So the moments of
brightness are computed and not sampled: impulses are sent through the samplers themselves.
"""

from __future__ import annotations

import logging
import math
from functools import cache

import pytest
import torch

from config.overrides import composed, options
from config.run_config import RunConfig
from diffusion import generate as generating
from diffusion import schedule as schedules
from diffusion.denoiser import Prediction
from diffusion.generate import SamplerSettings, generate, lost_brightness, warn_of_start
from diffusion.samplers import ancestral, ddim, dpm_solver, heun
from diffusion.spacing import (
    even_steps,
    inclusive_steps,
    log_snr_steps,
    quadratic_steps,
    trailing_steps,
)
from diffusion.variance import FixedLarge, FixedSmall
from runtime.config_schema import build
from tests.helpers.defaults import needed

MEAN = DEVIATION = 0.2
SAMPLERS = {"ancestral": ancestral, "ddim": ddim, "dpm_solver": dpm_solver, "heun": heun}
SIGMOID = schedules.sigmoid(1000)


def along(schedule, values, variance=None):
    """The exact denoiser's action along the direction of the mean: x0 ~ N(0.2 sqrt(D), 0.04 D). x:
    [B, sizes, 1, 1], D = values."""
    values = torch.tensor(values, dtype=torch.float64)[:, None, None]
    mean, spread, variance = MEAN * values.sqrt(), DEVIATION**2 * values, variance or FixedLarge()

    def denoise(x_t, t):
        bar = schedule.alpha_bar[t]
        x0 = mean + bar.sqrt() * spread / (bar * spread + 1 - bar) * (x_t - bar.sqrt() * mean)
        return Prediction(x0, (x_t - bar.sqrt() * x0) / (1 - bar).sqrt(), variance(None, t))

    return denoise


def brightness(sampler, schedule, steps, values, variance=None):
    """Exact [sizes, 2]: mean and standard deviation of the mean of an image of so many values, from
    N(0, I) at the first step, no clipping."""
    draws = len(steps) - 1
    impulses = torch.cat(
        [torch.zeros(1, draws), torch.eye(draws)]
    ).double()  # nothing, then x_T and each draw alone
    impulses = impulses[:, :, None, None, None].expand(-1, -1, len(values), 1, 1)
    drawn = iter(range(1, draws))
    out = sampler(
        along(schedule, values, variance),
        schedule,
        impulses[:, 0],
        steps,
        lambda like: impulses[:, next(drawn)],
    )
    out = out.flatten(1) / torch.tensor(values).sqrt()
    return torch.stack([out[0], (out[1:] - out[0]).norm(dim=0)], dim=1)


def closed_form(schedule, values):
    """What the probability flow makes of N(0, I) at T: mean and standard deviation of brightness.
    [sizes, 2]"""
    bar, spread = schedule.alpha_bar[-1], DEVIATION**2 * torch.tensor(values).double()
    factor = (spread / (bar * spread + 1 - bar)).sqrt()
    return torch.stack(
        [MEAN * (1 - bar.sqrt() * factor), factor / torch.tensor(values).sqrt()], dim=1
    )


@cache
def reference(sampler, name):
    """1000 steps of DDIM from T; of ancestral sampling its own."""
    schedule, sizes = shipped()[name]
    own = sampler is ancestral
    return brightness(sampler if own else ddim, schedule, trailing_steps(schedule, 1000), [*sizes])


def error(found, wanted):
    """[sizes]: in shares of what is allowed, 0.02 of the mean and 20% of the deviation."""
    return torch.maximum(
        (found - wanted)[:, 0].abs() / 0.02, (found / wanted - 1)[:, 1].abs() / 0.2
    )


@cache
def shipped():
    """name: (schedule, {values: where}) of the experiments."""
    found = {
        "cosine, T 1000": (schedules.cosine(1000), {64 * 64 * 3: "64px", 64 * 64: "64px gray"})
    }
    for name in options("experiment"):
        config = composed("train", [f"+experiment={name}", *needed(name)])
        schedule = config["schedule"]
        key = f"{schedule['_target_'].split('.')[-1]}, T {schedule['steps']}"
        found.setdefault(key, (build(schedule, ["diffusion"], "schedule"), {}))[1][
            math.prod(RunConfig(config).image_shape)
        ] = name
    return found


CASES = ["cosine, T 1000", "cosine, T 4000", "linear, T 1000"]
OTHERS = {
    "cosine": schedules.cosine(1000),
    "sigmoid": SIGMOID,
    "scaled linear": schedules.scaled_linear(1000),
    "zero terminal": schedules.zero_terminal(schedules.linear(1000)),
}


@cache
def defaults():
    """name: settings of the samplers, as conf/sampler has them."""
    return {
        name: RunConfig(composed("train", [f"sampler={name}"])).sampler
        for name in options("sampler")
    }


def test_the_shipped_cases():
    assert {case: sorted(sizes) for case, (_, sizes) in shipped().items()} == {
        "cosine, T 1000": [576, 1728, 4096, 12288],
        "cosine, T 4000": [3072, 4096],
        "linear, T 1000": [3072, 4096, 12288, 196608],
    }


@pytest.mark.parametrize("case", CASES)
def test_the_reference_of_brightness_is_the_closed_form(case):
    schedule, sizes = shipped()[case]
    assert (error(reference(ddim, case), closed_form(schedule, [*sizes])) < 0.1).all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_brightness_at_the_default(sampler, case):
    """Each sampler as conf/sampler has it, with its own number of steps and with 50; with 334 and
    600 no worse than with 50."""
    schedule, sizes = shipped()[case]
    settings, wanted = defaults()[sampler], reference(SAMPLERS[sampler], case)
    errors = {}
    for count in {settings.steps, 50, 334, 600}:
        found = brightness(settings.function, schedule, settings.spacing(schedule, count), [*sizes])
        errors[count] = error(found, wanted)
        for where, (mean, deviation), of in zip(
            sizes.values(), found.tolist(), wanted.tolist(), strict=True
        ):
            print(
                f"{where} ({case}), {sampler}, {count} steps: {mean:.3f}, {deviation:.3f} "
                f"(reference {of[0]:.3f}, {of[1]:.3f})"
            )
    assert (errors[settings.steps] <= 1).all() and (errors[50] <= 1).all()
    assert (errors[334] <= errors[50]).all() and (errors[600] <= errors[50]).all()


@pytest.mark.parametrize("case", OTHERS)
def test_brightness_elsewhere(case):
    """Printed: other schedules and sizes, and 10 steps. Asserted: sampling starts at T."""
    schedule, sizes = OTHERS[case], [3 * size**2 for size in (32, 64, 128, 256)]
    for sampler, settings in defaults().items():
        for count in (10, 20, 50):
            steps = settings.spacing(schedule, count)
            assert steps[0] == schedule.steps
            found = brightness(settings.function, schedule, steps, sizes)
            for size, (mean, deviation), flow in zip(
                sizes, found.tolist(), closed_form(schedule, sizes).tolist(), strict=True
            ):
                print(
                    f"{case}, {size} values, {sampler}, {count} steps: {mean:.3f}, "
                    f"{deviation:.3f} (flow {flow[0]:.3f}, {flow[1]:.3f})"
                )


@pytest.mark.parametrize("spacing", [trailing_steps, log_snr_steps])
def test_brightness_of_heuns_1000_steps_under_the_sigmoid(spacing):
    """Its first step from T makes sigma / alpha fall 31-fold; the mean of two slopes made 0.33 at
    64 and 1.13 at 256 pixels of 0.2."""
    sizes = [64 * 64, 256 * 256, 3 * 256 * 256]
    found, wanted = (
        brightness(heun, SIGMOID, spacing(SIGMOID, 1000), sizes),
        closed_form(SIGMOID, sizes),
    )
    print(found, wanted)
    assert (error(found, wanted) < 1).all()


@pytest.mark.parametrize(
    ("sampler", "variance"),
    [(name, FixedLarge()) for name in SAMPLERS] + [("ancestral", FixedSmall())],
)
def test_brightness_is_that_of_real_images(sampler, variance):
    """The same by sampling 8x8 images of 3 channels with the whole denoiser, through generate():
    the projection loses nothing."""
    schedule, shape, n = schedules.cosine(1000), (3, 8, 8), 1000
    values, rng = math.prod(shape), torch.Generator().manual_seed(0)
    low_rank = torch.randn(values, 2, generator=rng, dtype=torch.float64)
    low_rank = 0.3 * (low_rank - low_rank.mean(0))
    covariance = low_rank @ low_rank.T + DEVIATION**2
    assert torch.linalg.matrix_rank(covariance) == 3

    def denoise(x_t, t):
        bar, x = schedule.alpha_bar[t], x_t.flatten(1).double()
        gain = bar.sqrt() * torch.linalg.solve(
            bar * covariance + (1 - bar) * torch.eye(values), covariance
        )
        x0 = MEAN + (x - bar.sqrt() * MEAN) @ gain
        noise = (x - bar.sqrt() * x0) / (1 - bar).sqrt()
        return Prediction(x0.view_as(x_t), noise.view_as(x_t), variance(None, t))

    settings = SamplerSettings(SAMPLERS[sampler], log_snr_steps, 15, clip=False)
    means = generate(denoise, schedule, settings, shape, range(n)).flatten(1).double().mean(1)
    steps = log_snr_steps(schedule, 15)
    mean, deviation = brightness(SAMPLERS[sampler], schedule, steps, [values], variance)[0].tolist()
    assert means.mean().item() == pytest.approx(mean, abs=4 * deviation / n**0.5)
    assert means.std().item() == pytest.approx(deviation, rel=4 / (2 * n) ** 0.5)


@pytest.mark.parametrize("script", ["train", "sample", "evaluate"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_script_begins_at_the_end(script, sampler):
    """Whatever the schedule and the number of steps."""
    config = composed(
        script, [f"sampler={sampler}", *(["checkpoint=x"] if script == "sample" else [])]
    )
    spacing = build(config["sampler"]["spacing"], ["diffusion"], "spacing")
    for schedule in (
        schedules.linear(99),
        schedules.cosine(1000),
        SIGMOID,
        OTHERS["zero terminal"],
    ):
        for count in (1, 7, 50, 99):
            assert (
                spacing(schedule, count)[0] == schedule.steps
                and len(spacing(schedule, count)) == count + 1
            )


# --- the warning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1000, 981, 801])
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_lost_brightness_is_what_the_finest_sampling_loses(make, first):
    schedule, sizes = make(1000), [3 * 32 * 32, 64 * 64, 3 * 256 * 256]
    found = brightness(dpm_solver, schedule, [*range(first, 0, -2), 0], sizes)
    expected = torch.tensor([lost_brightness(schedule, first, values) for values in sizes])
    torch.testing.assert_close(1 - found[:, 0] / MEAN, expected.double(), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("schedule", "spacing", "count", "shape", "warns"),
    [
        (schedules.cosine(1000), quadratic_steps, 20, (1, 64, 64), True),
        (schedules.linear(1000), quadratic_steps, 20, (3, 256, 256), True),
        (schedules.linear(1000), quadratic_steps, 20, (3, 32, 32), True),
        (schedules.cosine(1000), even_steps, 50, (1, 64, 64), True),
        (schedules.linear(1000), even_steps, 50, (3, 32, 32), False),
        (schedules.linear(1000), even_steps, 10, (3, 256, 256), True),
        (schedules.linear(1000), even_steps, 1000, (3, 256, 256), False),
        (SIGMOID, trailing_steps, 10, (3, 256, 256), False),
        (schedules.cosine(1000), inclusive_steps, 10, (3, 256, 256), False),
        (schedules.cosine(4000), log_snr_steps, 10, (3, 64, 64), False),
    ],
)
def test_a_start_that_loses_brightness_is_told_once(schedule, spacing, count, shape, warns, caplog):
    """Where it loses a tenth of it beside what is lost from T, for the size: with the share, the t
    and the cure."""
    generating._warn_once.cache_clear()
    settings = SamplerSettings(ddim, spacing, count)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            warn_of_start(schedule, settings, shape)
    first = settings.spacing(schedule, count)[0]
    assert len(caplog.records) == warns
    for record in caplog.records:
        assert (
            f"t = {first} of T = {schedule.steps}" in record.message
            and "spacing=log_snr" in record.message
        )
