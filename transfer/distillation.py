"""Features of the source that the target keeps: a penalty on what chosen layers say."""

from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from diffusion.denoiser import ForwardPass, full
from models.layers import output_of
from runtime.errors import UserError
from transfer.context import Penalty, Start
from transfer.glob_matches import checked_matches

Features = dict[str, Tensor]  # output by the name of its module


class FeatureDistillation(Penalty):
    """weight times the mean squared difference of student and source in what some layers say of the
    same (x_t, t, condition), averaged over the layers.

    The student's features come from the pass that trains; its dropout, which the frozen source does
    not have, counts as a difference.

    Args:
        layers: globs on module names, as "mid.block.1" or "down.*.block.*" (`*` also crosses dots:
            "down.*" are all modules inside).
    Raises:
        UserError: where the weight is not above 0, or the globs name nothing.
    Source:
        Romero et al. 2015 (FitNets, eq. 3, there 1/2 of the sum of squares and through a regressor,
        which equal shapes don't need); against the source's own features as in Li et al. 2019
        (DELTA), here without its weights by channel.
    """

    def __init__(self, start: Start, *, weight: float, layers: Sequence[str]):
        self.weight, self.source = weight, start.frozen()
        names = matching(start.denoiser.network, layers)
        if not names or not weight > 0:
            raise UserError(
                f"FeatureDistillation: weight={weight} must be above 0, and "
                f"layers={list(layers)} must name one at least."
            )
        self.of_student = recorded(
            start.denoiser.network,
            names,
            lambda network: network.training and torch.is_grad_enabled(),
        )
        self.of_source = recorded(self.source.network, names, lambda network: True)

    def __call__(self, step: ForwardPass) -> Tensor:
        student = self.of_student.pop(step.x_t)
        self.of_student.clear()  # of passes over other images
        with torch.no_grad():
            self.source.outputs(step.x_t, step.t, step.condition)
        source = self.of_source.pop(step.x_t)
        differences = [
            (full(student[name]) - full(source[name])).square().mean() for name in source
        ]
        return self.weight * torch.stack(differences).mean()


def matching(network: nn.Module, layers: Sequence[str]) -> list[str]:
    """The modules that run (a list of modules does not) whose names match a glob.

    Raises:
        UserError: where one matches none.
    """
    running = [
        name
        for name, module in network.named_modules()
        if name and type(module).forward is not nn.Module.forward
    ]
    return checked_matches(layers, running, "layers of FeatureDistillation", "module")


def recorded(
    network: nn.Module, names: Sequence[str], when: Callable[[nn.Module], bool]
) -> MutableMapping[Tensor, Features]:
    """A mapping that fills itself: from the x_t of a pass through network, by identity and as long
    as that tensor lives, to what the named modules returned.

    Hooks are plain functions: a copy of the network shares them and does not copy what they hold.
    What runs outside a pass does not count, such as the blocks that gradient checkpointing repeats
    in the backward pass.

    Args:
        when: which passes count; those of an evaluation and of an adversary (transfer.ant) don't.
    """
    passes = WeakTensorKeyDictionary()
    under_way: list[Features] = []

    def begin(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if when(module):
            passes[inputs[0]] = {}
            under_way.append(passes[inputs[0]])

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        under_way.clear()

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if under_way:
            under_way[0][name] = output_of(output)

    for name in names:
        network.get_submodule(name).register_forward_hook(partial(keep, name))
    network.register_forward_pre_hook(begin)
    network.register_forward_hook(end, always_call=True)
    return passes
