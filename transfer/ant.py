"""DPMs-ANT: training on the noise that the student knows least, guided by a classifier of source
and target."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from data.dataset import Dataset
from data.pixels import to_x0
from data.splits import spread
from diffusion.denoiser import Condition, Denoiser, ForwardPass
from diffusion.schedule import expand
from models.layers import (
    JoiningNorm,
    ResBlock,
    Sum,
    conv,
    halve,
    linear,
    timestep_embedding,
    to_channels_last,
)
from runtime.seeds import derive, generator
from transfer.context import Start

CLASSIFIER = 2  # raise when the classifier's network or training changes
HALF_BATCH = 32  # images of the source in a step of the classifier, and of the target
RATE = 1e-3  # of the classifier's Adam
JUDGED = 256  # images of either side that its accuracy is measured on

log = logging.getLogger(__name__)


class AdversarialNoise:
    """The loss of DPMs-ANT (Wang et al., ICML 2024, arXiv 2308.11948): a pass over images with the
    noise of noise_of -> [B], the squared error of the predicted noise, averaged over an image's
    values.

    1. Adversarial noise: ascent_steps times noise <- norm(noise + ascent_rate grad_noise |noise -
       eps(x_t(noise), t)|^2), where norm gives each image's noise mean 0 and standard deviation 1.
       The gradient goes through the network; its parameters get none.
    2. Similarity guidance: at the x_t of that noise the target is noise - guidance (1 -
       alpha_bar_t) grad_x log p(target | x_t, t).

    The authors' code was read (its ascent_steps, ascent_rate and guidance are the defaults here);
    the paper itself could not be opened, only notes of others on its eq. 5 to 8. By those the
    factor of eq. 5 is gamma s^2 with s = (1 - alpha_bar_{t-1}) sqrt(alpha_t / (1 - alpha_bar_t)),
    and the code has 1 - alpha_bar_t instead of s^2. The two differ by about 2 beta_t (s is 0 at t =
    1); we follow the code. Neither is the shift by sqrt(1 - alpha_bar_t) of classifier guidance
    (Dhariwal and Nichol 2021, eq. 14). Where the code departs from the formula in step 1 we don't
    follow: it draws a new t after every ascent step, divides the gradient by the batch size, and
    lets the gradient pass through the network in the first step alone.

    Their classifier is an ImageNet classifier of 256x256 fine-tuned; ours is small and trained from
    nothing, see Classifier. A step costs 1 + ascent_steps passes forward and backward. The ascent
    runs without dropout: it then climbs one function, and the pass that trains draws the same masks
    as with any other loss. images: those of the source, at the target's size.
    """

    def __init__(
        self,
        start: Start,
        *,
        images: Callable[[Start], Dataset],
        guidance: float = 5.0,
        ascent_steps: int = 10,
        ascent_rate: float = 0.02,
        classifier_steps: int = 1000,
    ):
        self.guidance, self.ascent_steps, self.ascent_rate = guidance, ascent_steps, ascent_rate
        self.classifier = classifier_of(start, images(start), classifier_steps)

    def __call__(self, step: ForwardPass) -> Tensor:
        factor = expand(1 - step.schedule.alpha_bar[step.t], step.x_t)
        target = step.noise - self.guidance * factor * towards_target(
            self.classifier, step.x_t, step.t
        )
        return (step.prediction.noise - target).square().flatten(1).mean(1)

    def noise_of(
        self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, condition: Condition | None
    ) -> Tensor:
        """The noise after the ascent, which the pass that trains is made with."""
        with evaluating(denoiser), torch.enable_grad():
            for _ in range(self.ascent_steps):
                noise = noise.detach().requires_grad_()
                error = noise - denoiser.forward_pass(x0, t, noise, condition).prediction.noise
                (gradient,) = torch.autograd.grad(error.square().sum(), noise)
                noise = normalized(noise + self.ascent_rate * gradient)
        return noise.detach()


def normalized(noise: Tensor) -> Tensor:
    """Each image with mean 0 and standard deviation 1."""
    std, mean = torch.std_mean(noise, dim=(1, 2, 3), keepdim=True)
    return (noise - mean) / std


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout, for a while; each part then is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def towards_target(classifier: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    """grad_x log p(target | x_t, t) [B, C, H, W]."""
    with torch.enable_grad(), torch.autocast(x_t.device.type, enabled=False):
        x_t = x_t.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.logsigmoid(classifier(x_t, t)).sum(), x_t)
    return gradient


class Classifier(nn.Module):
    """(x_t [B, C, H, W], t [B] in 1..T) -> [B], the log odds that the image below the noise is of
    the target. Half a small UNet with its mean over the pixels; about 360,000 parameters. H and W
    at least 8.
    """

    WIDTHS = (32, 64, 128)

    def __init__(self, channels: int):
        super().__init__()
        first, last, time = self.WIDTHS[0], self.WIDTHS[-1], 4 * self.WIDTHS[0]
        self.time_mlp = nn.Sequential(linear(first, time), nn.SiLU(), linear(time, time), nn.SiLU())
        self.conv_in = conv(channels, first, 3)
        self.down = nn.ModuleList(
            ResBlock(a, b, time, groups=8, dropout=0.0, resample=halve)
            for a, b in pairwise((first, *self.WIDTHS))
        )
        self.norm_out = JoiningNorm(8, last)
        self.out = linear(last, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        weight = self.conv_in.weight
        time = self.time_mlp(timestep_embedding(t, self.WIDTHS[0]).to(weight.dtype))
        h = Sum(self.conv_in(x.to(weight.dtype).contiguous(memory_format=torch.channels_last)))
        for block in self.down:
            _, h = block(h, block.time_proj(time))  # type: ignore[operator]
        return self.out(self.norm_out(h)[1].mean((2, 3))).squeeze(1)


def classifier_of(start: Start, source: Dataset, steps: int) -> Classifier:
    """Trained on noisy images of the source against those of the target, or found in start.cache;
    frozen, on the denoiser's device."""
    assert source.images.shape[1:] == start.target.images.shape[1:], (
        "source images have the target's size"
    )
    schedule = start.denoiser.schedule
    content = start.measured_once(
        "classifier",
        [
            "classifier",
            CLASSIFIER,
            digest(source),
            digest(start.target),
            schedule.alpha_bar.tolist(),
            steps,
            start.data.flip,
            start.seed,
        ],
        partial(_train, start, source, steps),
    )
    levels, accuracy = _levels(schedule.steps), content.pop("accuracy").tolist()
    log.info(
        "classifier of source and target: right on %s of the images it was trained on",
        ", ".join(f"{a:.0%} at t={t}" for t, a in zip(levels, accuracy, strict=True)),
    )
    classifier = _untrained(start)
    classifier.load_state_dict(content)
    return to_channels_last(classifier, schedule.alpha_bar.device).requires_grad_(False).eval()


def digest(data: Dataset) -> str:
    """Of the images that are trained on."""
    rows = data.splits["train"]
    found = hashlib.sha256(repr((len(rows), *data.images.shape[1:])).encode())
    for start in range(0, len(rows), 1024):
        found.update(np.ascontiguousarray(data.images[rows[start : start + 1024]]).data)
    return found.hexdigest()


def _levels(T: int) -> list[int]:
    """Low, middle and full noise."""
    return [max(1, T // 10), max(1, T // 2), T]


def _untrained(start: Start) -> Classifier:
    """On the CPU, weights by the seed; the global stream stays where it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(start.seed, "classifier"))
        return Classifier(start.target.images.shape[3])


def _train(start: Start, source: Dataset, steps: int) -> dict[str, Tensor]:
    """Its tensors and its accuracy."""
    schedule, sides = start.denoiser.schedule, (source, start.target)
    device = schedule.alpha_bar.device
    classifier = to_channels_last(_untrained(start), device)

    def log_odds(x0: Tensor, t: Tensor, draw: torch.Generator) -> Tensor:
        noise = torch.randn(x0.shape, generator=draw)
        x0, t, noise = (x.to(device) for x in (x0, t, noise))
        return classifier(schedule.add_noise(x0, noise, t), t)

    @torch.no_grad()
    def accuracy(level: int) -> float:
        """At t = level: the mean of the share of source images and of target images that are told
        right."""
        shares = []
        for side, sign in enumerate((-1, 1)):
            rows = spread(sides[side].splits["train"], JUDGED, sides[side].labels)
            draw, right = generator(start.seed, "accuracy", side, level), []
            for first in range(0, len(rows), HALF_BATCH):
                images = sides[side].images[rows[first : first + HALF_BATCH]]
                t = torch.full((len(images),), level)
                right.append(log_odds(to_x0(torch.from_numpy(images)), t, draw) * sign > 0)
            shares.append(torch.cat(right).float().mean().item())
        return sum(shares) / 2

    optimizer = torch.optim.Adam(classifier.parameters(), lr=RATE)
    is_target = torch.arange(2 * HALF_BATCH, device=device).ge(HALF_BATCH)
    for k in tqdm(range(steps), desc="classifier of source and target", unit="step", delay=2):
        draw = generator(start.seed, "classifier", k)
        images = torch.from_numpy(np.concatenate([_drawn(data, draw) for data in sides]))
        flip = torch.rand(len(images), generator=draw) < 0.5 if start.data.flip else None
        t = torch.randint(1, schedule.steps + 1, (len(images),), generator=draw)
        found = log_odds(to_x0(images, flip), t, draw)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(found, is_target.float()).backward()
        optimizer.step()
    accuracies = [accuracy(level) for level in _levels(schedule.steps)]
    return classifier.state_dict() | {"accuracy": torch.tensor(accuracies)}


def _drawn(data: Dataset, draw: torch.Generator) -> np.ndarray:
    rows = data.splits["train"]
    return data.images[rows[torch.randint(len(rows), (HALF_BATCH,), generator=draw).numpy()]]
