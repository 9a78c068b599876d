"""Images for tests of features, and the nodes of conf/features."""

from __future__ import annotations

import numpy as np
from omegaconf import OmegaConf

from config.overrides import CONF


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def node_of(name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(CONF / "features" / f"{name}.yaml"))
