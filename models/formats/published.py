"""Bare files of weights, whosever they are."""

import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from models.formats.ddim import from_ddim, is_ddim, weights_of
from models.formats.diffusers import (
    NO_NULL_CLASS,
    UNET,
    WEIGHTS,
    from_diffusers,
    is_diffusers,
)
from models.formats.misfit import Tensors, check_same
from models.formats.openai import from_openai, is_openai
from models.unet import UNet
from runtime.checkpoint import EMA, MODEL, STATE
from runtime.config_schema import build
from runtime.content import differences
from runtime.errors import UserError
from runtime.signals import Preempted

FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# of what OpenAI published, the one checkpoint in that order; no shape tells
NEW_ATTENTION_ORDER = "64x64_diffusion.pt"
# of our config; of data the size and channels
SECTIONS = ("model", "schedule", "parameterization", "variance", "data")
log = logging.getLogger(__name__)


def tensors_of(file: Path, network: UNet, average: bool) -> Tensors:
    """All that the network has, under our names and in its shapes, whosever they were.

    Args:
        average: of a file that holds the model and its average, as a training checkpoint of DDIM's
            code alone does.
    Raises:
        UserError: where they are other ones.
    """
    try:
        found = read_weights(file)
        if is_ddim(found):
            return from_ddim(found, network, average)
        named = list(found) if isinstance(found, dict) else [type(found).__name__]
        if (
            not isinstance(found, dict)
            or not named
            or not all(map(torch.is_tensor, found.values()))
        ):
            raise UserError(
                f"no state dict, but {', '.join(named[:6]) or 'nothing'}: save the dict of the "
                "network's tensors alone."
            )
        if is_openai(found):
            return from_openai(found, network, new_attention_order=file.name == NEW_ATTENTION_ORDER)
        if is_diffusers(found):
            return from_diffusers(found, network)
        check_same(found, network.state_dict())
        return found
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def open_file(path: Path, sections: dict[str, Any] | None) -> dict[str, Any]:
    """The sections of a bare file of weights.

    Args:
        sections: the settings that it is said to have, None for none.
    Raises:
        UserError: where it is no such file, or one beside it says other settings, or nothing says
            any.
    """
    if path.suffix not in FILES:
        raise UserError(
            f"{path} is no file of weights, which ends in {', '.join(FILES)}. Of a run or a "
            "folder give the folder."
        )
    says = {MODEL: STATE, EMA: STATE}.get(path.name, UNET if path.stem == WEIGHTS else "")
    if (path.parent / says).is_file():  # which is true, and other settings are not
        raise UserError(
            f"{path}: {says} beside it says what its network is: give the folder {path.parent} "
            "instead of the file."
        )
    if sections is None:
        raise UserError(
            f"{path}: a file of weights does not say its network. Name the experiment of ours "
            "whose settings it has: trained_as=NAME, or 'overrides=[\"model=NAME\", ...]'. "
            "(conf/published.yaml knows published files by name.)"
        )
    stated = {section: sections[section] for section in SECTIONS}
    try:
        return with_ends(read_weights(path), stated, path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def with_ends(found: Any, config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The config with the ends of the network as the file has them: channels of the image,
    variance, classes. A target may have other ones than its source, and transfer.adapt_weights fits
    them; what else differs is an error later on."""
    state = weights_of(found)
    # under OpenAI's name, or all the others'
    first = state.get("input_blocks.0.0.weight", state.get("conv_in.weight"))
    last = state.get("out.2.weight", state.get("conv_out.weight"))
    table = state.get("label_emb.weight", state.get("class_embedding.weight", ()))
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        return config  # no network, which is said where it is converted
    # of the target, where nobody states the settings
    own = {key: value for key, value in config["model"].items() if key != "augmentations"}
    config = config | {"model": own}
    if (told := state.get("augmentation_embedding.weight")) is not None:
        own = own | {"augmentations": told.shape[1]}
    channels = first.shape[1]
    has_null = not is_openai(state) and not is_diffusers(state)
    classes = max(0, len(table) - has_null)
    if classes and not has_null:
        log.warning(NO_NULL_CLASS, path)
    variance = config["variance"]
    learned = build(variance, ["diffusion"], "variance").outputs == 2
    if len(last) == (1 if learned else 2) * channels:
        kind = "FixedLarge" if learned else "LearnedRange"
        variance = {"_target_": f"diffusion.variance.{kind}"}
    adapted = config | {
        "model": own | {"in_channels": channels, "classes": classes},
        "variance": variance,
        "data": config["data"] | {"channels": channels},
    }
    if lines := differences(adapted, config):
        log.warning(
            "%s: read with what the file itself shows (its settings -> the file's): %s",
            path,
            "; ".join(lines),
        )
    return adapted


def read_weights(path: Path) -> Any:
    """What a file of weights holds: tensors in lists and dicts, and nothing that could run.

    Raises:
        UserError: where it is damaged, holds more than tensors, or holds them under no names.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # torch below 1.6 wrote no zip
        found = torch.load(
            path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        with open(path, "rb") as file:
            begins = file.read(1)
        if begins == b"<":
            raise UserError("a web page, and no file of weights: download it again.") from error
        raise UserError(
            "refused: it holds more than tensors, which could run any code on opening, or it is no "
            "file of weights. If you trust it, save its state dict alone as safetensors."
        ) from error
    except Preempted:
        raise
    except Exception as error:  # a damaged file ends in whatever error its bytes lead to
        raise UserError(
            f"damaged, or no file of weights: {_line(error)}. Copy or download it again."
        ) from error
    parts = found if isinstance(found, list | tuple) else [found]
    if any(not isinstance(name, str) for part in parts if isinstance(part, dict) for name in part):
        raise UserError(
            "no state dict: its tensors are not under names. Save the dict of the network's "
            "tensors alone."
        )
    return found


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
