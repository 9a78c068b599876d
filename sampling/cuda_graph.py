"""A denoiser made ready for sampling: what depends on the step alone is computed ahead, and on a
GPU the network is one CUDA graph."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.denoiser import Condition, Denoise, Denoiser, Prediction

AHEAD = 2**26  # values of time terms that are kept at once: 256 MB in float32


def prepared(
    denoiser: Denoiser, steps: Sequence[int], graph: bool = True
) -> Callable[[Condition | None], Denoise]:
    """prepared(...)(condition)(x_t, t) is denoiser(x_t, t, condition) up to rounding, for t among
    steps.

    The time terms of many steps are computed in one pass, the schedule's numbers come from the
    host, and on CUDA the network is recorded once for each shape and replayed (graph=False:
    launched kernel by kernel). Weights that change in place afterwards show; the network stays in
    eval() and where it is.
    """
    network = denoiser.network
    widths = [block.time_proj.out_features for block in network.res_blocks]

    def function(x: Tensor, terms: Tensor) -> Tensor:
        return network.run(x, terms.split(widths, dim=1))

    run = Replayed(function) if graph and denoiser.schedule.alpha_bar.is_cuda else function
    decoder = Denoiser(
        network, denoiser.schedule.to("cpu"), denoiser.parameterization, denoiser.variance
    )

    def given(condition: Condition | None) -> Denoise:
        terms = time_terms(denoiser, steps, condition or {}, sum(widths))

        def denoise(x_t: Tensor, t: Any) -> Prediction:
            return decoder.predict(*decoder.halves(run(x_t, terms(t))), x_t, t)

        return denoise

    return given


def time_terms(
    denoiser: Denoiser, steps: Sequence[int], condition: Condition, width: int
) -> Callable[[int], Tensor]:
    """t -> [1 or B, width]: UNet.time_terms side by side, of which as many steps are computed at
    once as AHEAD allows."""
    network, timestep, labels = denoiser.network, denoiser.timestep, 1
    if "label" in condition:
        label, row = condition["label"].unique(return_inverse=True)
        condition, labels = {"label": label}, len(label)
    at_once = max(1, AHEAD // (labels * width))

    @lru_cache(1)
    @torch.no_grad()
    def terms_from(first: int) -> Tensor:
        """[steps, labels, width]"""
        t = torch.tensor(steps[first : first + at_once], device=timestep.device)
        repeated = {name: values.repeat(len(t)) for name, values in condition.items()}
        terms = network.time_terms(timestep[t].repeat_interleave(labels), repeated)
        return torch.cat(terms, dim=1).unflatten(0, (len(t), labels))

    def terms_at(t: int) -> Tensor:
        k = steps.index(t)
        terms = terms_from(k - k % at_once)[k % at_once]
        return terms if labels == 1 else terms[row]

    return terms_at


class Replayed:
    """A function of CUDA tensors, recorded for each shape that comes and then replayed: one launch
    in place of hundreds."""

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function
        self.recorded: dict[tuple[Any, ...], Callable[..., Tensor]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple((x.shape, x.dtype) for x in inputs)
        if key not in self.recorded:
            self.recorded[key] = self._record(inputs)
        return self.recorded[key](*inputs)

    def _record(self, inputs: Sequence[Tensor]) -> Callable[..., Tensor]:
        places, side = [x.clone() for x in inputs], torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is chosen at the first calls must not be recorded
            for _ in range(3):
                self.function(*places)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.function(*places)

        def replay(*inputs: Tensor) -> Tensor:
            for place, x in zip(places, inputs, strict=True):
                place.copy_(x)
            graph.replay()
            return output.clone()  # the next replay writes there again

        return replay


def cast_ahead(network: nn.Module, dtype: torch.dtype) -> None:
    """Convolutions and linear layers keep their weights as autocast would cast them at every call:
    the same numbers, without the casts. Biases stay as they are: a norm may add them, in float32.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = module.weight.data.to(dtype)
