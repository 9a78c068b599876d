"""Parameters put into a network beside its weights: W becomes f(W), and f's own parameters train.

The one mechanism is torch's parametrization, a module that computes a tensor of a layer from the
original one wherever the layer reads it. It renames what it touches; what the rest of the house
sees are the names from before: a weight keeps its name, and what was injected stands after it, as
in `down.1.attention.0.qkv.weight.lora.up`. The kinds are lora, scale, spectral and rows.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from tqdm import tqdm

from models.formats.misfit import State, check_same
from runtime.config_schema import make
from runtime.errors import UserError
from runtime.seeds import generator
from transfer.glob_matches import checked_matches

WHERE = "transfer.inject"
Layer = Any  # a module with a weight; where it cannot have what is put on it, `on` says so


class Injected(nn.Module):
    """f: what a layer reads in place of a weight. At the start f(W) = W to the bit. It is called
    once for each time that the layer reads the weight, so once in a forward, and once more where
    gradient checkpointing repeats it."""

    kind: str  # in names, between the weight's and the parameter's
    frozen_base = False  # whether f holds only for the weight that it was made from
    decays = True  # whether weight decay pulls its parameters to 0

    def follow(self, weight: Tensor) -> None:
        """Called when the original weight has been loaded: f makes anew what it derives from it."""


class Injection(Protocol):
    """What a node of `transfer.inject` builds.

    Attributes:
        tensors: of a layer, those that it is put on.
        patterns: globs on names of parameters, or on those of layers where it is put on more than
            one tensor of each.
    """

    patterns: Sequence[str]
    tensors: tuple[str, ...]

    def on(self, layer: Layer, random: torch.Generator) -> Injected:
        """For one layer.

        Raises:
            ValueError: where it cannot be put there.
        """


def matrix_shape(layer: Layer, branches: int = 1) -> tuple[int, int]:
    """Rows and columns of the weight as a matrix: [out, in] of a linear layer, [out, in k k] of a
    convolution.

    Args:
        branches: how many matrices it stacks, of which these are one's.
    Raises:
        ValueError: where it is no such weight, or no such stack.
    """
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise ValueError("only the weights of linear layers and convolutions can have it.")
    rows = layer.weight.shape[0]
    if branches < 1 or rows % branches:
        raise ValueError(f"its {rows} outputs are not branches={branches} matrices.")
    return rows // branches, layer.weight[0].numel()


def inject(network: nn.Module, injections: Sequence[Injection], seed: int = 0) -> None:
    """Puts them in, in this order where a weight has several. A network on the meta device shows
    all errors.

    Args:
        seed: of what starts at random.
    Raises:
        UserError: where a pattern matches nothing, or something that its kind cannot be put on.
    """
    names = [name for name, _ in network.named_parameters()]
    assert not added(network), "all that is injected goes in at once"
    for injection in injections:
        kind, whole = type(injection).__name__, len(injection.tensors) > 1
        known = list(dict.fromkeys(name.rpartition(".")[0] for name in names)) if whole else names
        matched = checked_matches(injection.patterns, known, WHERE)
        for name in tqdm(matched, desc=f"injecting {kind}", unit="layer", delay=2, leave=False):
            where = f"{WHERE}: {kind} on {name}"
            layer_name, _, tensor = (name, "", "") if whole else name.rpartition(".")
            if not whole and tensor not in injection.tensors:
                raise UserError(f"{where}: it goes on a {injection.tensors[0]}, not on a {tensor}.")
            layer = network.get_submodule(layer_name)
            new = make(injection.on, where, layer, generator(seed, "inject", name))
            for tensor in injection.tensors:
                if any(old.kind == new.kind for old in chains(layer).get(tensor, ())):
                    raise UserError(
                        f"{WHERE}: {name} is named by two injections of the kind {new.kind}; it "
                        "can have one."
                    )
                register_parametrization(layer, tensor, new)


def parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters under their plain names, in the order of network.named_parameters(): with
    nothing injected, the same."""
    return {name: parameter for name, parameter, _ in _parameters(network)}


def added(network: nn.Module) -> set[str]:
    """The plain names of what was injected."""
    return {name for name, _, injected in _parameters(network) if injected}


def undecayed(network: nn.Module) -> set[str]:
    """The plain names of injected parameters that weight decay has to leave alone."""
    return {name for name, _, injected in _parameters(network) if injected and not injected.decays}


def _parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter, Any]]:
    """(plain name, parameter, the Injected that it is of or None): `qkv.parametrizations.weight.
    original` is `qkv.weight`, and `qkv.parametrizations.weight.0.up` is `qkv.weight.lora.up`."""
    for name, parameter in network.named_parameters():
        layer, inside, rest = name.partition("parametrizations.")
        if not inside:
            yield name, parameter, None
            continue
        tensor, index, *leaf = rest.split(".", 2)
        if index == "original":
            yield layer + tensor, parameter, None
        else:
            injected: Any = network.get_submodule(f"{layer}{inside}{tensor}.{index}")
            yield f"{layer}{tensor}.{injected.kind}.{leaf[0]}", parameter, injected


def chains(layer: nn.Module) -> dict[str, Any]:
    """What is put on each tensor of a layer, by the tensor's name."""
    return dict(getattr(layer, "parametrizations", {}))


def _injected(network: nn.Module) -> Iterator[tuple[str, Tensor, Injected]]:
    """(plain name of a tensor, the original tensor, what is put on it)."""
    for name, layer in network.named_modules():
        for tensor, chain in chains(layer).items():
            for injected in chain:
                yield f"{name}.{tensor}", chain.original, injected


def check(network: nn.Module, trained: Collection[str]) -> None:
    """Checks that no weight trains from which something injected was made.

    Args:
        trained: the plain names of all that train at some step.
    Raises:
        UserError: where one does.
    """
    for name, _, injected in _injected(network):
        if injected.frozen_base and name in trained:
            raise UserError(
                f"transfer.rules: {name} trains, and so does {name}.{injected.kind}, which "
                "holds for the source's weight only. "
                f'Freeze the weight with {{pattern: "{name}", learning_rate_scale: 0}}, or '
                f"take it out of {WHERE}."
            )


@torch.no_grad()
def load(network: nn.Module, tensors: State) -> None:
    """Sets all parameters, by plain names.

    A network that only waits for its weights can be injected on the meta device and given memory
    with to_empty: what is derived from the weights is then made here alone.

    Raises:
        UserError: where one is missing, unknown or of another shape; none is set then.
    """
    own = parameters(network)
    check_same(tensors, own)
    for name, parameter in own.items():
        parameter.copy_(tensors[name])
    for _, weight, injected in tqdm(
        list(_injected(network)), desc="injected parameters", unit="layer", delay=2, leave=False
    ):
        injected.follow(weight)
