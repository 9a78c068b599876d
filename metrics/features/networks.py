"""Any network of photographs, from a file on disk."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from metrics.features import Embedding, Features, Resample, in_colour, resized
from metrics.features.weight_files import loading, tensors, weight_file
from runtime.errors import UserError, near
from runtime.files import sha256
from runtime.torchvision import torchvision


@dataclass(frozen=True)
class Normalized:
    """images [B, H, W, 1 or 3] uint8 -> [B, 3, size, size]: in colour, the whole picture brought to
    a square (antialiased), and of its values in 0..1 (x - mean) / std."""

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    resample: Resample

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean={list(self.mean)} and std={list(self.std)} must be three numbers each, one "
                "a colour, those of std above 0."
            )

    def __call__(self, images: Tensor) -> Tensor:
        x = resized(in_colour(images).float() / 255, self.size, self.resample).clamp(0, 1)
        return torchvision.transforms.functional.normalize(x, self.mean, self.std)


class TorchScript(Features):
    """A TorchScript file that maps [B, 3, size, size] to [B, D], or to [B, D, ...] whose mean over
    the rest is taken.

    A TorchScript file is a program: it runs what its author wrote. Take it from those whom you
    would take code from. path: the file. size: the side of what it takes; the whole picture is
    brought to it, antialiased. mean, std: of the colours in 0..1, as the network was trained.
    """

    def __init__(
        self,
        path: str,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        resample: Resample,
    ):
        file = weight_file(
            path,
            "a TorchScript network",
            "make it where you have the network: torch.jit.trace(network.eval(), "
            "images).save(FILE)",
        )
        digest, seen = sha256(file), Normalized(size, mean, std, resample)
        identity = {"kind": "torchscript", "sha256": digest, **asdict(seen)}
        name = f"features of {file.name} (TorchScript, sha256 {digest[:8]}; not FID's)"
        super().__init__(name, file.stem, identity)
        self.file, self.input = file, seen
        try:
            self.network = torch.jit.load(str(file), map_location="cpu").eval()
        except Exception as error:  # a damaged file ends in whatever error its bytes lead to
            raise UserError(
                f"{file}: damaged, or no TorchScript ({_line(error)}). A state dict is for "
                "features=timm."
            ) from error

    def forward(self, images: Tensor) -> Embedding:
        x = self.input(images)
        try:
            found = self.network(x)
        except RuntimeError as error:
            raise UserError(
                f"{self.file} takes no images {list(x.shape)}: {_line(error)}. The side that it "
                "takes is the setting features.size."
            ) from error
        is_float = isinstance(found, Tensor) and found.is_floating_point()
        if not is_float or found.ndim < 2 or len(found) != len(x):
            what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"{self.file} maps images {list(x.shape)} to {what}, and features [{len(x)}, D] "
                "are needed."
            )
        return Embedding(found.flatten(2).mean(2) if found.ndim > 2 else found)


class Timm(Features):
    """What timm's network gives without its classifier: the pooled map, or the class token of a
    vision transformer.

    name: of timm, with its tag. path: its weights, as safetensors or .pth, or a name in
    conf/downloads.yaml. size: the side of what it sees, to which the whole picture is brought,
    antialiased; null is that of its training. short: for headings. Colours and filter are those of
    the network's config.
    """

    def __init__(self, name: str, path: str, size: int | None = None, short: str | None = None):
        import timm  # takes a second, and no other features need it

        known = timm.list_pretrained()
        if name not in known:
            raise UserError(
                f"features.name={name}: timm {timm.__version__} has no such weights "
                f"(NETWORK.TAG); {near(name, known)}"
            )
        config: Any = timm.models.get_pretrained_cfg(name)
        hub = config.hf_hub_id
        download = f": hf download {hub} model.safetensors" if hub else ""
        file = weight_file(path, name, f"get them where there is a network{download}")
        size = config.input_size[-1] if size is None else size
        # a vision transformer has its size built in
        sized: dict[str, Any] = {"img_size": size} if config.fixed_input_size else {}
        identity = {"kind": "timm", "name": name, "sha256": sha256(file), "size": size}
        super().__init__(f"{name} (timm; not FID's)", short or name.split(".")[0], identity)
        resample: Resample = "bilinear" if config.interpolation == "bilinear" else "bicubic"
        self.input = Normalized(size, config.mean, config.std, resample)
        try:
            self.network = timm.create_model(name, pretrained=False, num_classes=0, **sized)
        except (ValueError, AssertionError, TypeError) as error:
            raise UserError(
                f"features.size={size}: {name} cannot be built at this size ({_line(error)})."
            ) from error
        patch = getattr(getattr(self.network, "patch_embed", None), "patch_size", (1,))
        if any(size % side for side in patch):
            raise UserError(
                f"features.size={size}: {name} cuts images into patches of {patch[0]}, and "
                "would leave out what is over."
            )
        with loading(file, name):
            self.network.load_state_dict(self._renamed(tensors(file)))
        self.requires_grad_(False).eval()

    def _renamed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Under timm's names, without the classifier: each of its files of networks knows the names
        of those who trained them, and how positions are scaled to another size."""
        rename = getattr(sys.modules[type(self.network).__module__], "checkpoint_filter_fn", None)
        if rename:
            state = rename(state, self.network)
        config: Any = self.network.pretrained_cfg
        classifier = config.get("classifier") or ()
        heads = [classifier] if isinstance(classifier, str) else classifier
        return {name: w for name, w in state.items() if name.rpartition(".")[0] not in heads}

    def forward(self, images: Tensor) -> Embedding:
        return Embedding(self.network(self.input(images)))


def _line(error: Exception) -> str:
    """The last line, where TorchScript says what went wrong."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")
