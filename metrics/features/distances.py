"""Features whose Euclidean distances are distances of images: they are for nearest neighbours more
than for sets."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from metrics.features import Embedding, Features, in_colour, resized
from metrics.features.weight_files import loading, tensors, weight_file
from runtime.errors import UserError, together
from runtime.files import sha256
from runtime.torchvision import torchvision

LAYERS = (1, 4, 7, 9, 11)  # of torchvision's AlexNet: after each of its ReLUs
SMALLEST = 31  # of the sides that its poolings leave anything of
# of the colours in -1..1 (Zhang et al. 2018, version 0.1)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
LINEAR = "lpips_alex_v0.1.pth"


class Pixels(Features):
    """The values of all pixels in 0..1: [B, H W C], gray or colour as they are."""

    def __init__(self) -> None:
        super().__init__("pixels in 0..1", "pixels", {"kind": "pixels"})

    def forward(self, images: Tensor) -> Embedding:
        return Embedding(images.flatten(1).float() / 255)


class Lpips(Features):
    """phi such that |phi(x) - phi(y)|^2 = LPIPS(x, y) (Zhang et al. 2018, eq. 1; AlexNet, version
    0.1).

    LPIPS is the sum over layers l of the mean over places of w_l . (h_l(x) - h_l(y))^2, with h_l of
    length 1 at each place and w_l >= 0, so phi is sqrt(w_l / (H_l W_l)) h_l, all laid end to end:
    31,872 values at 64x64. Images of two sizes do not compare. path: torchvision's AlexNet, or its
    file's name. size: a side that images are scaled to first (bicubic); null leaves them as they
    are, which is LPIPS.
    """

    def __init__(self, path: str, size: int | None = None):
        if size is not None and size < SMALLEST:
            raise ValueError(f"size={size} must be null or at least {SMALLEST}.")
        file, linear = together(lambda: weight_file(path, "AlexNet"), _linear_weights)
        name = f"LPIPS (AlexNet, v0.1{f', at {size}x{size}' if size else ''})"
        identity = {"kind": "lpips", "sha256": sha256(file), "linear": sha256(linear), "size": size}
        super().__init__(name, "LPIPS", identity)
        self.size = size
        with torch.device("meta"):  # its 60 million weights of a classifier are of no use here
            self.layers = torchvision.models.alexnet().features
        state = {
            name.removeprefix("features."): tensor
            for name, tensor in tensors(file).items()
            if not name.startswith("classifier.")
        }
        with loading(file, "torchvision's AlexNet"):
            self.layers.load_state_dict(state, assign=True)
        found = tensors(linear)
        self.weights = nn.ParameterList(
            found[f"lin{k}.model.1.weight"].view(-1, 1, 1) for k in range(len(LAYERS))
        )
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Embedding:
        x = in_colour(images).float() / 127.5 - 1
        if self.size:
            x = resized(x, self.size, "bicubic").clamp(-1, 1)
        if min(x.shape[2:]) < SMALLEST:
            raise UserError(
                f"LPIPS needs images of {SMALLEST} pixels a side, and these are {x.shape[2]} high "
                f"and {x.shape[3]} wide: the setting size=64 of these features scales them first."
            )
        x = torchvision.transforms.functional.normalize(x, SHIFT, SCALE)
        parts = list[Tensor]()
        for k, layer in enumerate(self.layers[: LAYERS[-1] + 1]):
            x = layer(x)  # [B, C, H, W]
            if k in LAYERS:
                unit = x / (x.norm(dim=1, keepdim=True) + 1e-10)
                weights = self.weights[len(parts)] / unit[0, 0].numel()
                parts.append((unit * weights.sqrt()).flatten(1))
        return Embedding(torch.cat(parts, dim=1))


def _linear_weights() -> Path:
    """The w_l, a small file that the package lpips carries, which is not imported; where it is not
    installed, the same file is fetched."""
    package = importlib.util.find_spec("lpips")
    folders = package.submodule_search_locations if package else None
    for folder in folders or ():
        if (file := Path(folder) / "weights/v0.1/alex.pth").is_file():
            return file
    return weight_file(LINEAR, "LPIPS's linear layers")
