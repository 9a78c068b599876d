"""Images for tests of features, the nodes of conf/features, and files of random weights of the
form that the published ones have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from config.overrides import CONF
from runtime.torchvision import torchvision


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def node_of(name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(CONF / "features" / f"{name}.yaml"))


def scaled(network: nn.Module) -> dict[str, Tensor]:
    """Random weights by which what goes through the network neither vanishes nor grows, nor is
    normalised to what it was."""
    random = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for name, tensor in state.items():
        if tensor.ndim > 1:
            state[name] = (
                torch.randn(tensor.shape, generator=random) * (2 / tensor[0].numel()) ** 0.5
            )
        elif tensor.is_floating_point():
            state[name] = torch.rand(tensor.shape, generator=random) * 0.2 + (
                0.9 if name.endswith(("running_var", "weight")) else -0.1
            )
    return state


def write_inception(path: Path) -> Path:
    """torch-fidelity's file of FID's Inception."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            return None

    torch.save({}, path)
    torch.save(scaled(Unloaded("unloaded", ["2048"], str(path))), path)
    return path


def write_alexnet(path: Path) -> Path:
    """torchvision's file of AlexNet, but for its classifier."""
    with torch.device("meta"):
        network = torchvision.models.alexnet(weights=None).features
    random = torch.Generator().manual_seed(0)
    state = {
        f"features.{name}": torch.randn(t.shape, generator=random)
        * (2 / t[0].numel() if t.ndim > 1 else 0.01) ** 0.5
        for name, t in network.state_dict().items()
    }
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 3)}, path)
    return path


def write_dinov2(path: Path) -> Path:
    """Meta's file of DINOv2's small ViT: of 518x518, in 37x37 patches of 14."""
    random = torch.Generator().manual_seed(0)
    width = 384

    def linear(name: str, outputs: int, *inputs: int) -> dict[str, Tensor]:
        weight = torch.randn(outputs, *inputs, generator=random) / np.prod(inputs) ** 0.5
        return {f"{name}.weight": weight, f"{name}.bias": around(0, outputs)}

    def around(mean: float, *shape: int) -> Tensor:
        return mean + 0.1 * torch.randn(shape, generator=random)

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": around(1, width), f"{name}.bias": around(0, width)}

    state = {
        "cls_token": around(0, 1, 1, width),
        "pos_embed": around(0, 1, 1 + 37 * 37, width),
        "mask_token": around(0, 1, width),
        **linear("patch_embed.proj", width, 3, 14, 14),
        **norm("norm"),
    }
    for block in (f"blocks.{k}" for k in range(12)):
        state |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        state |= linear(f"{block}.attn.qkv", 3 * width, width)
        state |= linear(f"{block}.attn.proj", width, width)
        state |= linear(f"{block}.mlp.fc1", 4 * width, width)
        state |= linear(f"{block}.mlp.fc2", width, 4 * width)
        state |= {f"{block}.ls{k}.gamma": around(1, width) for k in (1, 2)}
    torch.save(state, path)
    return path
