"""The features of FID."""

from __future__ import annotations

import torch
from torch import Tensor

import runtime.torchvision  # noqa: F401  before what imports torchvision
from metrics.features import Embedding, in_colour
from metrics.features.inputs import tensors, weight_file
from runtime.errors import UserError
from runtime.files import sha256


class Inception:
    """The 2048 values before the last layer of FID's Inception v3 (Heusel et al. 2017), and its
    logits without their bias for the Inception score: "2048" and "logits_unbiased" of
    torch-fidelity, to the bit. Images are scaled to 299 as TensorFlow 1 did.

    path: torch-fidelity's weights-inception-2015-12-05-6726825d.pth.
    """

    def __init__(self, path: str):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import (
                URL_INCEPTION_V3,
                FeatureExtractorInceptionV3,
            )
        except ImportError:
            raise UserError(
                "FID's features need the package torch-fidelity: pip install torch-fidelity"
            ) from None
        name = URL_INCEPTION_V3.rsplit("/", 1)[1]
        file = weight_file(
            path,
            "FID's Inception v3",
            f"get {name} of torch-fidelity where there is a network ({URL_INCEPTION_V3})",
        )
        tensors(file)  # refuses what would run code: torch-fidelity opens the file without asking
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], str(file)
            )
        except RuntimeError as error:  # of load_state_dict
            raise UserError(
                f"{file} holds no weights of FID's Inception v3; it should be torch-fidelity's "
                f"{name}. {' '.join(str(error).split())[:200]} ..."
            ) from error
        self.name, self.short, self.frechet = (
            "Inception v3 (Heusel et al. 2017)",
            "Inception",
            "FID",
        )
        self.identity = {"kind": "inception", "sha256": sha256(file)}

    def to(self, device: torch.device | str) -> Inception:
        self.network.to(device)
        return self

    def __call__(self, images: Tensor) -> Embedding:
        return Embedding(*self.network(in_colour(images)))
