"""The features of FID."""

from torch import Tensor

import runtime.torchvision  # noqa: F401  before what imports torchvision
from metrics.features import Embedding, Features, in_colour
from metrics.features.weight_files import loading, tensors, weight_file
from runtime.errors import UserError
from runtime.files import sha256


class Inception(Features):
    """The 2048 values before the last layer of FID's Inception v3 (Heusel et al. 2017), and its
    logits without their bias for the Inception score: "2048" and "logits_unbiased" of
    torch-fidelity, to the bit. Images are scaled to 299 as TensorFlow 1 did.

    path: torch-fidelity's weights-inception-2015-12-05-6726825d.pth, or that name.
    """

    def __init__(self, path: str):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UserError(
                "FID's features need the package torch-fidelity: pip install torch-fidelity"
            ) from None
        file = weight_file(path, "FID's Inception v3")
        tensors(file)  # refuses what would run code: torch-fidelity opens the file without asking
        identity = {"kind": "inception", "sha256": sha256(file)}
        super().__init__("Inception v3 (Heusel et al. 2017)", "Inception", identity, "FID")
        with loading(file, "FID's Inception v3, as torch-fidelity has it"):
            self.network = FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], str(file)
            )

    def forward(self, images: Tensor) -> Embedding:
        return Embedding(*self.network(in_colour(images)))
