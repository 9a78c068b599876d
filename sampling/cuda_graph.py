"""A denoiser made ready for sampling: what depends on the step alone is computed ahead, and on a
GPU the network is one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        terms = TimeTerms(denoiser, steps, condition or {})

        def denoise(x_t: Tensor, t: Any) -> Prediction:
            return decoder.predict(*decoder.halves(run(x_t, terms(t))), x_t, t)

        return denoise

    return given


class TimeTerms:
    """t -> [1 or B, sum of widths]: UNet.time_terms side by side, of which as many steps are
    computed at once as AHEAD allows."""

    def __init__(self, denoiser: Denoiser, steps: Sequence[int], condition: Condition):
        self.denoiser, self.steps = denoiser, list(steps)
        self.condition, self.row = {}, None
        if "label" in condition:
            label, self.row = condition["label"].unique(return_inverse=True)
            self.condition = {"label": label}
        self.first = 0
        self.ahead: Tensor | None = None

    def __call__(self, t: int) -> Tensor:
        k = self.steps.index(t)
        if self.ahead is None or not self.first <= k < self.first + len(self.ahead):
            self.first, self.ahead = k, self._from(k)
        terms = self.ahead[k - self.first]
        return terms if len(terms) == 1 else terms[self.row]

    @torch.no_grad()
    def _from(self, first: int) -> Tensor:
        """[steps, labels, sum of widths]"""
        network, timestep = self.denoiser.network, self.denoiser.timestep
        labels = self.condition.get("label", torch.zeros(1))
        count = max(
            1,
            AHEAD
            // (len(labels) * sum(block.time_proj.out_features for block in network.res_blocks)),
        )
        t = torch.tensor(self.steps[first : first + count], device=timestep.device)
        repeated = {name: values.repeat(len(t)) for name, values in self.condition.items()}
        terms = network.time_terms(timestep[t].repeat_interleave(len(labels)), repeated)
        return torch.cat(terms, dim=1).unflatten(0, (len(t), len(labels)))


class Replayed:
    """A function of CUDA tensors, recorded for each shape that comes and then replayed: one launch
    in place of hundreds."""

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function
        self.recorded: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple((x.shape, x.dtype) for x in inputs)
        if key not in self.recorded:
            self.recorded[key] = self._record(inputs)
        graph, places, output = self.recorded[key]
        for place, x in zip(places, inputs, strict=True):
            place.copy_(x)
        graph.replay()
        return output.clone()  # the next replay writes there again

    def _record(
        self, inputs: Sequence[Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        places, side = [x.clone() for x in inputs], torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is chosen at the first calls must not be recorded
            for _ in range(3):
                self.function(*places)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.function(*places)
        return graph, places, output


def cast_ahead(network: nn.Module, dtype: torch.dtype) -> None:
    """Convolutions and linear layers keep their weights as autocast would cast them at every call:
    the same numbers, without the casts. Biases stay as they are: a norm may add them, in float32.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = module.weight.data.to(dtype)
