"""What holds the weights near those of the source. A penalty is called on every micro-batch and
returns what is added to its loss.

With any of these optimizer.weight_decay must be 0: it pulls to 0 and not to the source.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from tqdm import tqdm

from data.batches import Batches
from data.dataset import Dataset
from data.pixels import to_x0
from diffusion.denoiser import Denoiser, ForwardPass
from diffusion.losses import simple_loss
from models.formats.misfit import Tensors
from runtime.errors import UserError
from runtime.seeds import derive, generator
from transfer.adapters import parameters
from transfer.context import Penalty, Start
from transfer.resize_weights import TABLE

FISHER = 1  # raise when the same settings measure something else


class L2SP(Penalty):
    """weight / 2 * sum (w - w0)^2 over the parameters that came from the source, w0 their values at
    the start.

    Biases and norms are held too. The authors' code (holyseven/TransferLearningClassification,
    model/network_base.py) holds the weights alone by default, wd_mode 1, and all parameters as here
    with wd_mode 101.

    A parameter that is frozen at a step does not count in it, nor do rows of the class table for
    classes that the source does not have. Their second term, beta / 2 * sum w^2 over the new last
    layer, is left out: what is new in a denoiser are rows for classes, norms, gates and adapters,
    which 0 is no place to pull to.

    Raises:
        UserError: where the weight is not above 0, or nothing came from the source.
    Source:
        Li et al. 2018 (L2-SP).
    """

    def __init__(self, start: Start, *, weight: float):
        if not weight > 0:
            raise UserError(
                f"{type(self).__name__}: weight={weight} must be above 0; without a penalty "
                "leave it out."
            )
        self.weight, self.new_rows = weight, start.new_rows
        self.w = copied_parameters(start.denoiser.network, start)
        self.w0 = {name: self.held(name, w).detach().clone() for name, w in self.w.items()}
        self.importance: Tensors | None = None  # None: 1 for each

    def __call__(self, step: ForwardPass) -> Tensor:
        names = [name for name, w in self.w.items() if w.requires_grad]
        if not names:
            return torch.zeros((), device=step.x_t.device)
        importance = self.importance and [self.importance[name] for name in names]
        w = [self.held(name, self.w[name]) for name in names]
        return self.weight * HalfSquare.apply([self.w0[name] for name in names], importance, *w)

    def held(self, name: str, values: Tensor) -> Tensor:
        """What of a parameter's values is the source's."""
        return values[self.new_rows :] if name == TABLE else values


class EWC(L2SP):
    """weight / 2 * sum F (w - w0)^2, elastic weight consolidation.

    F is the diagonal of the Fisher information as fisher() measures it, in its own scale: weight
    has to be large where F is small.

    Args:
        n: (image, t, noise) triples that F is measured on.
        images: of the source.
    Raises:
        UserError: as L2SP, and where n is below 1.
    Source:
        Kirkpatrick et al. 2017, eq. 3.
    """

    def __init__(self, start: Start, *, weight: float, n: int, images: Callable[[Start], Dataset]):
        super().__init__(start, weight=weight)
        if n < 1:
            raise UserError(f"EWC: n={n} must be at least 1.")
        measured = known_fisher(start, images(start), n)
        # w's strides
        self.importance = {
            name: torch.empty_like(w).copy_(self.held(name, measured[name]))
            for name, w in self.w0.items()
        }


class HalfSquare(torch.autograd.Function):
    """sum F (w - w0)^2 / 2 over lists of tensors, []. Its gradient is F (w - w0), which is said
    here: on a GPU a few fused kernels in place of several for each parameter. F: a list, or None
    for 1."""

    @staticmethod
    def forward(ctx: Any, w0: list[Tensor], F: list[Tensor] | None, *w: Tensor) -> Tensor:
        difference = torch._foreach_sub(w, w0)
        ctx.force = difference if F is None else torch._foreach_mul(difference, F)
        # norm 1: the sum, as none is < 0
        return (
            torch.stack(torch._foreach_norm(torch._foreach_mul(difference, ctx.force), 1)).sum() / 2
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.force, gradient)


def copied_parameters(network: nn.Module, start: Start) -> dict[str, nn.Parameter]:
    """The network's parameters that came from the source, by name."""
    found = {
        name: parameter for name, parameter in parameters(network).items() if name in start.copied
    }
    if not found:
        raise UserError(
            "a penalty holds the weights near the source's, and none was copied from it: see "
            "source.from and source.include."
        )
    return found


def fisher(
    denoiser: Denoiser, w: Sequence[Tensor], batches: Batches, n: int, seed: int
) -> list[Tensor]:
    """The mean over n (image, t, noise) triples of the squared gradient of L_simple with respect to
    each of w.

    t lies evenly over 1..T, images come one a batch in their stream's order, noise by (seed, k).
    Nothing is rescaled. L_simple is a mean over the D values of an image, so this is (2 / D)^2
    times the empirical Fisher information of a Gaussian of variance 1 around the output: the one at
    the data, and not at draws of the model's own.

    Args:
        denoiser: in eval mode, in which w need gradients.
    Source:
        L_simple: Ho et al. 2020, eq. 14.
    """
    T, device = denoiser.schedule.steps, denoiser.schedule.alpha_bar.device
    total = [torch.zeros_like(v) for v in w]
    for k in tqdm(range(n), desc="Fisher information of the source", unit="image", delay=2):
        batch = batches.batch(k)
        x0 = to_x0(batch.images.to(device))
        t = torch.full((1,), 1 + (2 * k + 1) * T // (2 * n), device=device)
        noise = torch.randn(x0.shape, generator=generator(seed, "fisher noise", k)).to(device)
        loss = simple_loss(
            denoiser.forward_pass(x0, t, noise, {"label": batch.label.to(device)})
        ).sum()
        gradient = torch.autograd.grad(loss, w, allow_unused=True, materialize_grads=True)
        torch._foreach_addcmul_(total, gradient, gradient, 1 / n)
    return total


def known_fisher(start: Start, images: Dataset, n: int) -> Tensors:
    """fisher() of the parameters that came from the source, by name, at the start; measured once
    and kept in the cache."""
    batches = Batches(images, 1, False, derive(start.seed, "fisher"))

    def measure() -> Tensors:
        # a copy, so that no flag, mode or gradient of the one that trains is touched
        denoiser = start.frozen()
        w = copied_parameters(denoiser.network, start)
        for parameter in w.values():
            parameter.requires_grad_()
        return dict(zip(w, fisher(denoiser, list(w.values()), batches, n, start.seed)))

    return start.measured_once("fisher", _decided_by(start, batches, n), measure)


def _decided_by(start: Start, batches: Batches, n: int) -> list[Any]:
    """All that decides the numbers: weights, what the network and the rest of the denoiser are,
    images, triples."""
    denoiser, content = start.denoiser, hashlib.sha256()
    weights = denoiser.network.state_dict().values()
    for tensor in (*weights, denoiser.schedule.alpha_bar, denoiser.timestep):
        content.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    for k in range(n):
        batch = batches.batch(k)
        content.update(batch.images.numpy().tobytes() + batch.label.numpy().tobytes())
    parts = [[name, *_plain(module)] for name, module in denoiser.named_modules()]
    predicts = _plain(denoiser.parameterization)
    return [FISHER, content.hexdigest(), n, start.seed, parts, predicts, sorted(start.copied)]


def _plain(part: Any) -> list[Any]:
    """What a part is and the numbers it was built with, such as heads, which no weight shows."""
    settings = {
        key: value
        for key, value in vars(part).items()
        if isinstance(value, int | float | str) and key != "training"
    }
    return [f"{type(part).__module__}.{type(part).__name__}", settings]
