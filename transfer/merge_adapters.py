"""Adapters merged into the weights: what is left is a plain network."""

from torch import nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from config.run_config import RunConfig
from models.formats.misfit import Tensors
from transfer.adapters import chains, inject, load


def merge(network: nn.Module) -> nn.Module:
    """Takes all out again and leaves every weight as it was with them, under the names and in the
    order of a plain network."""
    for layer in [layer for layer in network.modules() if is_parametrized(layer)]:
        # torch keeps the injected tensors' accessors in a class of the layer's own, which a deep
        # copy shares, and removes them from it
        shared = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        for tensor in chains(layer):
            remove_parametrizations(layer, tensor)
        # what was taken out came back last
        for tensor in [name for name in ("weight", "bias") if name in layer._parameters]:
            layer._parameters[tensor] = layer._parameters.pop(tensor)
    return network


def without_adapters(config: RunConfig) -> RunConfig:
    return config.with_sections(transfer=config.raw["transfer"] | {"inject": []})


def merged(config: RunConfig, tensors: Tensors) -> Tensors:
    """The weights of the plain network that equals the one with these tensors."""
    network = config.build_network()
    # before, as what is injected may be made of them
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    inject(network, config.transfer.inject)
    load(network, tensors)
    merge(network)
    return network.state_dict()
