"""Noise schedules against their papers' formulas, Bayes' rule and the respaced process."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffusion import schedule as schedules
from diffusion.schedule import NoiseSchedule, from_betas
from diffusion.variance import FixedLarge, FixedSmall, Fraction

TOTALS = [1, 10, 1000, 4000]
NAMES = ["linear", "scaled_linear", "cosine", "sigmoid"]


def products(betas):
    """alpha_bar_0 .. alpha_bar_T by a plain loop, eq. 4 of Ho et al. 2020."""
    out = [1.0]
    for beta in betas:
        out.append(out[-1] * (1 - beta))
    return np.array(out)


def line(start, end, count):
    """count values on a line; one value is the start."""
    return [start + (end - start) * i / max(count - 1, 1) for i in range(count)]


def assert_alpha_bar(schedule, expected):
    """Float64, [T + 1], each within rounding of the expected, relative to itself."""
    assert schedule.alpha_bar.dtype == torch.float64
    assert schedule.alpha_bar[0] == 1
    assert schedule.steps == len(expected) - 1
    np.testing.assert_allclose(schedule.alpha_bar.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("total", TOTALS)
def test_linear_is_hos(total):
    """betas 1e-4 .. 0.02 on a line, section 4 of Ho et al. 2020."""
    assert_alpha_bar(schedules.linear(total), products(line(1e-4, 0.02, total)))


def test_linear_other_ends():
    """beta_start and beta_end are beta_1 and beta_T."""
    assert_alpha_bar(schedules.linear(7, 0.1, 0.4), products(line(0.1, 0.4, 7)))


@pytest.mark.parametrize("total", TOTALS)
def test_scaled_linear_is_latent_diffusions(total):
    """Square roots of the betas on a line, as in latent diffusion: 0.00085 .. 0.012."""
    assert_alpha_bar(
        schedules.scaled_linear(total),
        products(root**2 for root in line(0.00085**0.5, 0.012**0.5, total)),
    )


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("max_beta", [0.999, 0.4])
def test_cosine_is_nichol_and_dhariwals(total, max_beta):
    """f(t) = cos^2((t/T + s) / (1 + s) pi/2), beta_t = min(1 - f(t)/f(t-1), max_beta), s = 0.008:
    their eq. 17."""

    def f(t):
        return math.cos((t / total + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f(t) / f(t - 1), max_beta) for t in range(1, total + 1)]
    assert_alpha_bar(schedules.cosine(total, max_beta=max_beta), products(betas))
    assert betas[-1] == max_beta  # clipping is part of what was just compared: f(T) = 0


def test_cosine_follows_its_function_before_the_clip():
    """alpha_bar_t = f(t) / f(0) for every t below T at T = 1000, where only the last beta is
    clipped."""
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = schedules.cosine(1000).alpha_bar.numpy()
    np.testing.assert_allclose(alpha_bar[:-1], (f / f[0])[:-1], rtol=1e-9)
    assert alpha_bar[-1] == pytest.approx(f[-2] / f[0] * 0.001, rel=1e-9)


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize(("start", "end", "tau"), [(-3, 3, 1.0), (0, 3, 0.5), (-3, 3, 1.3)])
def test_sigmoid_is_chens(total, start, end, tau):
    """(g(1) - g(u)) / (g(1) - g(0)), g(u) = sigmoid((start + u (end - start)) / tau): algorithm 1
    of Chen 2023, beta_T clipped."""

    def g(u):
        return 1 / (1 + math.exp(-(start + u * (end - start)) / tau))

    expected = [(g(1) - g(t / total)) / (g(1) - g(0)) for t in range(total + 1)]
    expected[-1] = expected[-2] * 0.001
    assert_alpha_bar(schedules.sigmoid(total, start, end, tau), np.array(expected))


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_falls_from_one_and_stays_above_zero(name, total):
    """What every formula of the process divides by: 1 = alpha_bar_0 > alpha_bar_1 > ... >
    alpha_bar_T > 0."""
    schedule = getattr(schedules, name)(total)
    assert schedule.alpha_bar[0] == 1
    assert (schedule.alpha_bar.diff() < 0).all()
    assert schedule.alpha_bar[-1] > 0
    assert not schedule.zero_terminal_snr


def test_from_betas():
    """Three betas, multiplied by hand; a list, an array and float32 are all accepted."""
    expected = np.array([1, 0.5, 0.375, 0.3])
    for betas in ([0.5, 0.25, 0.2], np.array([0.5, 0.25, 0.2])):
        assert_alpha_bar(from_betas(betas), expected)
    assert from_betas(np.array([0.5, 0.25], dtype=np.float32)).alpha_bar.dtype == torch.float64


def test_from_betas_ends_at_zero_with_a_last_beta_of_one():
    """beta_T = 1 is the way to write zero terminal SNR as betas."""
    schedule = from_betas([0.1, 1.0])
    assert schedule.zero_terminal_snr and schedule.alpha_bar[-1] == 0


@pytest.mark.parametrize(
    "betas",
    [
        [],
        [0.0, 0.1],
        [-0.1],
        [0.1, 1.1],
        [float("nan")],
        [0.1, float("inf")],
        [[0.1, 0.2]],
        0.1,
        [0.1, 1.0, 0.1],
    ],
)
def test_bad_betas_are_refused(betas):
    """Out of (0, 1], not a number, not a list, or a 1 before the end (0 / 0 after it)."""
    with pytest.raises(ValueError, match="betas"):
        from_betas(betas)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(name, steps):
    """T must be at least 1, and the message names the option."""
    with pytest.raises(ValueError, match=r"schedule\.steps"):
        getattr(schedules, name)(steps)


@pytest.mark.parametrize("total", [2, 10, 1000, 4000])
@pytest.mark.parametrize("name", NAMES)
def test_zero_terminal(name, total):
    """Algorithm 1 of Lin et al. 2024: exactly 0 at T, the first step kept, sqrt(alpha_bar) an
    affine map of what it was."""
    before = getattr(schedules, name)(total)
    after = schedules.zero_terminal(before)
    assert after.alpha_bar[-1] == 0 and after.zero_terminal_snr
    assert after.alpha_bar[0] == 1 and after.alpha_bar.dtype == torch.float64
    assert after.alpha_bar[1].item() == pytest.approx(before.alpha_bar[1].item(), rel=1e-14)
    assert (after.alpha_bar.diff() < 0).all()
    if total > 2:
        slope = after.alpha_bar.sqrt().diff()[1:] / before.alpha_bar.sqrt().diff()[1:]
        np.testing.assert_allclose(slope, slope[0], rtol=1e-6)


def test_zero_terminal_of_one_step_is_refused():
    """At T = 1 the first step cannot both stay and end at 0; the formula gives 0 / 0."""
    with pytest.raises(ValueError, match="2 steps"):
        schedules.zero_terminal(schedules.linear(1))


@pytest.mark.parametrize("name", NAMES)
def test_zero_terminal_is_diffusers(name):
    """The same alpha_bar as diffusers' rescale_zero_terminal_snr, run in float64 on the same
    betas."""
    import runtime.torchvision  # noqa: F401  before anything that imports torchvision

    # isort: split
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    schedule = getattr(schedules, name)(1000)
    betas = 1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]
    theirs = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    np.testing.assert_allclose(
        schedules.zero_terminal(schedule).alpha_bar[1:], theirs, rtol=1e-9, atol=1e-16
    )


def test_add_noise_is_the_chain_of_single_steps():
    """Mean and variance of x_t from T single steps x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t)
    eps: eq. 2 of Ho et al. 2020."""
    betas, schedule = line(1e-4, 0.02, 100), schedules.linear(100)
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(betas, start=1):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        alpha, sigma = schedule.alpha_sigma(t)
        assert alpha.item() == pytest.approx(mean, rel=1e-12)
        assert sigma.item() ** 2 == pytest.approx(variance, rel=1e-10)


def test_add_noise_statistics():
    """Mean within 5 standard errors of sqrt(alpha_bar) x0 and variance within 5 of 1 - alpha_bar,
    per image with its own t."""
    schedule, count = schedules.linear(1000), 200_000
    t = torch.tensor([1, 300, 1000])
    x0 = torch.tensor([0.9, -0.5, 0.25])[:, None].expand(3, count)
    noise = torch.randn(3, count, generator=torch.Generator().manual_seed(0))
    x_t = schedule.add_noise(x0, noise, t).double()
    alpha_bar = products(line(1e-4, 0.02, 1000))[t.numpy()]
    mean_error = (x_t.mean(1).numpy() - np.sqrt(alpha_bar) * x0[:, 0].numpy()) / np.sqrt(
        (1 - alpha_bar) / count
    )
    variance_error = (x_t.var(1).numpy() / (1 - alpha_bar) - 1) / math.sqrt(2 / count)
    assert np.abs(mean_error).max() < 5 and np.abs(variance_error).max() < 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_add_noise_keeps_the_type_and_takes_ints_and_tensors(dtype):
    """An int t and a tensor full of it agree to the bit; t = 0 returns the image itself; the type
    is x0's."""
    schedule = schedules.cosine(50)
    x0, noise = torch.randn(2, 4, 3, 5, 7, dtype=dtype)
    x_t = schedule.add_noise(x0, noise, torch.full((4,), 30))
    assert x_t.dtype == dtype
    assert torch.equal(x_t, schedule.add_noise(x0, noise, 30))
    assert torch.equal(schedule.add_noise(x0, noise, 0), x0)


def bayes(schedule, s, t):
    """Factors of x_0 and x_t in the mean, and the variance, of q(x_s | x_t, x_0): prior q(x_s |
    x_0) times q(x_t | x_s)."""
    alpha_bar = schedule.alpha_bar.numpy()
    scale = math.sqrt(alpha_bar[t] / alpha_bar[s])
    precision = 1 / (1 - alpha_bar[s]) + scale**2 / (1 - scale**2)
    return (
        math.sqrt(alpha_bar[s]) / (1 - alpha_bar[s]) / precision,
        scale / (1 - scale**2) / precision,
        1 / precision,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("s", "t"), [(1, 2), (1, 1000), (499, 500), (20, 700), (999, 1000)])
def test_posterior_is_bayes_rule(name, s, t):
    """Product of the two Gaussians, for neighbouring and distant steps."""
    schedule = getattr(schedules, name)(1000)
    of_x0, of_xt, variance = bayes(schedule, s, t)
    ours = (*schedule.posterior_coefficients(s, t), schedule.posterior_variance(s, t))
    np.testing.assert_allclose([v.item() for v in ours], [of_x0, of_xt, variance], rtol=1e-8)
    x0, x_t = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(
        schedule.posterior_mean(x0, x_t, s, t), of_x0 * x0 + of_xt * x_t, rtol=1e-8, atol=1e-12
    )


def test_posterior_at_zero_is_the_image():
    """q(x_0 | x_t, x_0) is a point at x_0, from any t, with zero terminal SNR too."""
    for schedule in (schedules.linear(10), schedules.zero_terminal(schedules.linear(10))):
        for t in (1, 5, 10):
            of_x0, of_xt = schedule.posterior_coefficients(0, t)
            assert of_x0.item() == pytest.approx(1, rel=1e-14) and of_xt == 0
            assert schedule.posterior_variance(0, t) == 0


def respaced(alpha_bar, kept):
    """Ho's coefficients (eq. 6, 7) of the process that has only the kept steps: betas from the
    ratios of the kept alpha_bars, as guided-diffusion's SpacedDiffusion defines them, then a Markov
    chain of their own."""
    kept_bar = alpha_bar[kept]
    previous = np.concatenate([[1.0], kept_bar[:-1]])
    betas = 1 - kept_bar / previous
    bar = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], bar[:-1]])
    return {
        "beta": betas,
        "of_x0": np.sqrt(before) * betas / (1 - bar),
        "of_xt": np.sqrt(1 - betas) * (1 - before) / (1 - bar),
        "variance": betas * (1 - before) / (1 - bar),
    }


@pytest.mark.parametrize("irregular", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_posterior_of_any_steps_is_the_respaced_process(name, irregular):
    """50 of 1000 steps: the same posterior as a process whose betas are recomputed for those
    steps."""
    schedule = getattr(schedules, name)(1000)
    rng = np.random.default_rng(0)
    kept = (
        np.sort(rng.choice(np.arange(1, 1001), 50, replace=False))
        if irregular
        else np.arange(1, 1001, 20)
    )
    expected = respaced(schedule.alpha_bar.numpy(), kept)
    t, s = torch.from_numpy(kept), torch.from_numpy(np.concatenate([[0], kept[:-1]]))
    of_x0, of_xt = schedule.posterior_coefficients(s, t)
    ours = {
        "beta": schedule.step_beta(s, t),
        "of_x0": of_x0,
        "of_xt": of_xt,
        "variance": schedule.posterior_variance(s, t),
    }
    for key, value in ours.items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-7, atol=1e-14, err_msg=key)
    for fraction, key in ((0.0, "variance"), (1.0, "beta")):
        logs = Fraction(fraction).log(schedule, s, t)
        np.testing.assert_allclose(logs[1:], np.log(expected[key][1:]), rtol=1e-7, err_msg=key)


def test_the_reverse_log_variance_interpolates_logs():
    """log(posterior variance) at fraction 0, log(beta) at 1, the line between them in the log:
    Nichol and Dhariwal 2021, eq. 15."""
    schedule, betas = schedules.linear(1000), line(1e-4, 0.02, 1000)
    bar = products(betas)
    for t in (2, 3, 500, 1000):
        beta = betas[t - 1]
        small = (1 - bar[t - 1]) / (1 - bar[t]) * beta
        for fraction in (0.0, 0.3, 1.0):
            expected = fraction * math.log(beta) + (1 - fraction) * math.log(small)
            assert Fraction(fraction).log(schedule, t - 1, t).item() == pytest.approx(
                expected, rel=1e-9
            )


def test_the_reverse_log_variance_takes_a_fraction_per_pixel():
    """A learned fraction of x's shape: the widest shape wins, each pixel mixes its own logs of its
    own image's t."""
    schedule = schedules.linear(1000)
    t = torch.tensor([2, 700])
    fraction = torch.rand(
        2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    logs = Fraction(fraction).log(schedule, t - 1, t)
    assert logs.shape == fraction.shape and logs.dtype == torch.float64
    for k in range(2):
        _, _, small = bayes(schedule, int(t[k]) - 1, int(t[k]))
        beta = 1 - schedule.alpha_bar[t[k]] / schedule.alpha_bar[t[k] - 1]
        torch.testing.assert_close(
            logs[k],
            fraction[k] * beta.log() + (1 - fraction[k]) * math.log(small),
            rtol=1e-8,
            atol=0,
        )


@pytest.mark.parametrize("name", NAMES)
def test_first_step_has_hos_value(name):
    """Ho's code: log(append(posterior_variance[1], ...)), the variance of q(x_1 | x_2, x_0), for
    "fixed small" and for "fixed large", whose log(append(posterior_variance[1], betas[1:])) shares
    it."""
    schedule = getattr(schedules, name)(1000)
    _, _, second = bayes(schedule, 1, 2)
    t = torch.tensor([1, 2, 1000])
    small = FixedSmall()(None, t).log(schedule, t - 1, t)
    large = FixedLarge()(None, t).log(schedule, t - 1, t)
    assert small[0].item() == pytest.approx(math.log(second), rel=1e-9)
    assert large[0].item() == pytest.approx(math.log(second), rel=1e-9)
    beta = 1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]
    np.testing.assert_allclose(large[1:], beta[[1, 999]].log(), rtol=1e-12)
    for k in (1, 2):
        assert small[k].item() == pytest.approx(
            math.log(bayes(schedule, int(t[k]) - 1, int(t[k]))[2]), rel=1e-9
        )
        assert FixedLarge()(None, int(t[k])).log(schedule, int(t[k]) - 1, int(t[k])) == large[k]


@pytest.mark.parametrize("length", [1, 20, 250])
def test_first_step_of_a_respaced_process_has_its_second_steps_value(length):
    """Steps length apart up to T: Ho's rule on the process that has only them,
    posterior_variance[1], is q(x_l | x_2l, x_0)."""
    schedule = schedules.linear(1000)
    expected = respaced(schedule.alpha_bar.numpy(), np.arange(length, 1001, length))["variance"][1]
    assert Fraction(0.0).log(schedule, 0, length).item() == pytest.approx(
        math.log(expected), rel=1e-9
    )


def test_first_step_past_half_way_has_the_last_value():
    """Where no step as long is left above, the longest that ends at T; and where none is, beta
    itself."""
    schedule = schedules.linear(1000)
    assert Fraction(0.0).log(schedule, 0, 700).item() == pytest.approx(
        math.log(bayes(schedule, 300, 1000)[2]), rel=1e-9
    )
    assert Fraction(0.0).log(schedule, 0, 1000).item() == pytest.approx(
        math.log(1 - schedule.alpha_bar[1000]), rel=1e-9
    )


@pytest.mark.parametrize(
    ("total", "zero_terminal"),
    [(1, False), (2, False), (3, False), (10, False), (2, True), (3, True), (10, True)],
)
def test_the_reverse_log_variance_is_finite_everywhere(total, zero_terminal):
    """No -inf and no index beyond T for any 0 <= s < t <= T and any fraction."""
    schedule = schedules.linear(total, 0.1, 0.3)
    schedule = schedules.zero_terminal(schedule) if zero_terminal else schedule
    for t in range(1, total + 1):
        for s in range(t):
            for fraction in (0.0, 0.5, 1.0):
                assert Fraction(fraction).log(schedule, s, t).isfinite()


def test_to_keeps_float64():
    """Moving a schedule is not casting it."""
    moved = schedules.linear(10).to("cpu")
    assert isinstance(moved, NoiseSchedule) and moved.alpha_bar.dtype == torch.float64
    assert schedules.linear(10).to("meta").alpha_bar.device.type == "meta"


@pytest.mark.parametrize("steps", [500, 1000, 4000])
def test_rescaled_linear_scales_the_betas_with_the_number_of_steps(steps):
    """Nichol and Dhariwal's code: 1e-4 .. 0.02 times 1000 / T; Ho's own at 1000. What is left at T
    stays of the same size."""
    expected = products(np.linspace(0.1 / steps, 20 / steps, steps))
    np.testing.assert_allclose(
        schedules.rescaled_linear(steps).alpha_bar.numpy(), expected, rtol=1e-12
    )
    assert schedules.rescaled_linear(steps).alpha_bar[-1].item() == pytest.approx(
        np.exp(-10.05), rel=0.2
    )


def test_rescaled_linear_needs_enough_steps():
    """1000 / 19 times 0.02 is more than 1; at 20 the last beta is 1, and no signal is left."""
    with pytest.raises(ValueError, match="steps must be at least 20"):
        schedules.rescaled_linear(19)
    assert schedules.rescaled_linear(20).zero_terminal_snr


def test_snr_is_signal_over_noise():
    bar = schedules.linear(1000).alpha_bar
    np.testing.assert_allclose(
        schedules.linear(1000).snr(torch.tensor([1, 500, 1000])),
        [bar[k] / (1 - bar[k]) for k in (1, 500, 1000)],
    )
    assert schedules.linear(10).snr(0) == float("inf")


def test_equal_snr_of_a_schedule_with_itself_is_t():
    for schedule in (
        schedules.linear(),
        schedules.cosine(),
        schedules.zero_terminal(schedules.linear()),
    ):
        t = schedule.equal_snr(schedule)
        np.testing.assert_allclose(t[1:], np.arange(1, schedule.steps + 1), rtol=0, atol=1e-9)


def test_equal_snr_finds_the_time_of_the_same_ratio():
    """Between two times linear in the log of the ratio; beyond the ends, the end."""
    ours, theirs = schedules.cosine(), schedules.linear()
    t = ours.equal_snr(theirs)
    assert (
        t.dtype == torch.float64 and (t[1:].diff() >= 0).all() and t.min() >= 1 and t.max() <= 1000
    )
    log_ratio = ours.snr(torch.arange(1, 1001)).log()
    inside = (theirs.snr(torch.arange(1001)) < ours.snr(1)) & (
        theirs.snr(torch.arange(1001)) > ours.snr(1000)
    )
    assert inside.sum() > 900
    for k in inside.nonzero().flatten().tolist():
        low = math.floor(t[k])
        share = t[k] - low
        between = log_ratio[low - 1] * (1 - share) + (log_ratio[low] * share if share else 0)
        assert between.item() == pytest.approx(theirs.snr(k).log().item(), abs=1e-9)
    # no signal: as little as there is
    assert theirs.equal_snr(schedules.zero_terminal(schedules.linear()))[-1] == 1000
