"""The parts of a network by the kinds of its modules, and what each preset trains of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from models.layers import Attention


def owners(network: nn.Module) -> dict[str, tuple[list[str], nn.Module]]:
    """Each parameter: the parts of its name, and the module that has it."""
    modules = dict(network.named_modules())
    return {n: (n.split("."), modules[n.rpartition(".")[0]]) for n, _ in network.named_parameters()}


def inside_attention(network: nn.Module) -> set[str]:
    return {
        f"{m}.{n}"
        for m, module in network.named_modules()
        if isinstance(module, Attention)
        for n, _ in module.named_parameters()
    }


def part(*names: str) -> Callable[[list[str], nn.Module], bool]:
    return lambda path, module: path[0] in names


def levels(*numbers: int) -> Callable[[list[str], nn.Module], bool]:
    return lambda path, module: path[0] in ("down", "up") and int(path[1]) in numbers


def norm(path: list[str], module: nn.Module) -> bool:
    return isinstance(module, nn.GroupNorm)


def bias(path: list[str], module: nn.Module) -> bool:
    return path[-1] == "bias"


# preset: (a parameter belongs to it, by its name's parts and its module); level 0 and 1 are the
# finest two
SUBSETS = {
    "full": lambda p, m: True,
    "scratch": lambda p, m: True,
    "zero_shot": lambda p, m: False,
    "freeze_encoder": lambda p, m: not part("time_mlp", "conv_in", "down")(p, m),
    "freeze_decoder": lambda p, m: not part("up", "norm_out", "conv_out")(p, m),
    "middle_only": part("mid"),
    "freeze_low_resolution": lambda p, m: (
        levels(0, 1)(p, m) or part("conv_in", "norm_out", "conv_out")(p, m)
    ),
    "freeze_high_resolution": lambda p, m: part("mid")(p, m) or levels(2)(p, m),
    "norm_only": norm,
    "bitfit": bias,
    "norm_bias": lambda p, m: norm(p, m) or bias(p, m),
    "time_embedding": part("time_mlp"),
    "time_conditioning": lambda p, m: part("time_mlp")(p, m) or "time_proj" in p,
    "class_embedding": part("class_embedding"),
    "linear_probe": part("conv_in", "norm_out", "conv_out", "class_embedding"),
    "discriminative_lr": lambda p, m: True,
    "l2_sp": lambda p, m: True,
    "ewc": lambda p, m: True,
    "feature_distillation": lambda p, m: True,
    "dreambooth": lambda p, m: True,
    "diff_tuning": lambda p, m: True,
    "pairwise_similarity": lambda p, m: True,
}


INJECTED = {"difffit", "lora", "locon", "svdiff", "textual_inversion", "ant"}
