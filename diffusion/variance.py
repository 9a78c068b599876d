"""The variance of a reverse step: fixed, or learned in one of two ways. A variance is built from a
config; at each t it turns the network's second half of outputs, where there is one, into what a
step of any length needs."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffusion.schedule import NoiseSchedule, Time, expand


class Fraction(NamedTuple):
    """Of the way from the posterior's log variance (0, "fixed small") to log beta (1, "fixed
    large"). A number, [B] or [B, C, H, W]."""

    value: Tensor | float

    def log(self, schedule: NoiseSchedule, s: Time, t: Time) -> Tensor:
        """log variance of p(x_s | x_t). At s = 0 the posterior's is -inf; Ho uses the value of the
        step above, here the next one of the same length.

        Returns:
            float64, of the wider shape of t and value.
        Source:
            Nichol and Dhariwal 2021, eq. 15.
        """
        # a number on the CPU indexes without waiting for the device
        s, t = torch.as_tensor(s), torch.as_tensor(t)
        # 0 too where no step is above
        length = torch.where(s == 0, torch.minimum(t, schedule.steps - t), 0)
        posterior = schedule.posterior_variance(s + length, t + length)
        beta = schedule.step_beta(s, t)
        lower, upper = torch.where(posterior > 0, posterior, beta).log(), beta.log()
        v = self.value
        if isinstance(v, Tensor) and 0 < lower.ndim < v.ndim:
            lower, upper = (x.reshape(-1, *[1] * (v.ndim - 1)) for x in (lower, upper))
        return v * upper + (1 - v) * lower


class LogVariance(NamedTuple):
    """That of p(x_{t-1} | x_t) itself. [B, C, H, W]"""

    value: Tensor

    def log(self, schedule: NoiseSchedule, s: Time, t: Time) -> Tensor:
        """log variance of p(x_s | x_t); over a longer step it grows as beta does."""
        return self.value + expand(
            (schedule.step_beta(s, t) / schedule.step_beta(t - 1, t)).log(), self.value
        )


class Variance(Protocol):
    """outputs: values of the network for each value of the image, 2 where the second half is about
    the variance."""

    outputs: int

    def __call__(self, output: Tensor | None, t: Time) -> Fraction | LogVariance: ...


class FixedSmall:
    """sigma_t^2 = the posterior's variance; Ho et al. 2020, section 3.2."""

    outputs = 1

    def __call__(self, output: Tensor | None, t: Time) -> Fraction:
        return Fraction(0.0)


class FixedLarge:
    """sigma_t^2 = beta_t, but at t = 1 the posterior's value of the step above, as in Ho's code: it
    makes for a better likelihood of the last step."""

    outputs = 1

    def __call__(self, output: Tensor | None, t: Time) -> Fraction:
        return Fraction((torch.as_tensor(t) > 1).double())


class LearnedRange:
    """The network's [-1, 1] spans from the posterior's variance to beta, in logs; Nichol and
    Dhariwal 2021, eq. 15, and their code. In the paper the output is the fraction itself; neither
    bounds it."""

    outputs = 2

    def __call__(self, output: Tensor | None, t: Time) -> Fraction:
        assert output is not None
        return Fraction((output + 1) / 2)


class Learned:
    """The network's output is the log variance; Ho et al. 2020, table 2, "learned diagonal", and
    their code."""

    outputs = 2

    def __call__(self, output: Tensor | None, t: Time) -> LogVariance:
        assert output is not None
        return LogVariance(output)
