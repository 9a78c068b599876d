"""Trained weights from wherever a user has them, behind what Checkpoint offers: a run, a folder in diffusers' format, a name on the
Hugging Face Hub, or a bare file of weights."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from omegaconf import OmegaConf
from torch import Tensor

from models.ddim_format import from_ddim, is_ddim, weights_of
from models.diffusers_format import INDEX, SCHEDULER, UNET, WEIGHTS, check_same, from_diffusers, is_diffusers, is_folder, read_folder
from models.network import network_of
from models.openai_format import from_openai, is_openai
from models.unet import UNet
from runtime import checkpoint
from runtime.build import build
from runtime.checkpoint import EMA, MODEL, STATE
from runtime.config import CONF, composed, differences, options
from runtime.errors import UserError, near
from runtime.files import sha256

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
NEW_ATTENTION_ORDER = "64x64_diffusion.pt"  # of what OpenAI published, the one checkpoint in that order; no shape tells
FIRST, LAST = ("input_blocks.0.0.weight", "conv_in.weight"), ("out.2.weight", "conv_out.weight")  # OpenAI's name, and all the others'
TABLES = ("label_emb.weight", "class_embedding.weight")
NO_NULL_CLASS = "%s: the network never saw a null class, which is the mean of its classes here: sample it with label=..."
SECTIONS = ("model", "schedule", "parameterization", "variance", "data")
log = logging.getLogger(__name__)


class Trained(Protocol):
    """What train.py, sample.py and export.py ask of trained weights; runtime.checkpoint.Checkpoint is one.

    path: of the checkpoint, folder or file. step: null where it is not known. state: "config" with the sections of SECTIONS (of data
    only size and channels are read), "classes" (their names) and "sha256" of MODEL and EMA.
    """

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int | None: ...

    def weights(self, which: str) -> dict[str, Tensor]:
        """The tensors of MODEL or of EMA, under our names."""


@dataclass(frozen=True)
class Pretrained:
    """Weights that are no checkpoint of ours: one set, which is the model and its average at once (a training checkpoint of DDIM's code
    alone holds both). file: where the tensors are."""

    path: Path
    file: Path
    state: dict[str, Any]
    step: None = None

    def weights(self, which: str = EMA) -> dict[str, Tensor]:
        """The tensors under our names, which network_of has all of, in its shapes. Raises UserError where they are other ones."""
        try:
            return _converted(read_weights(self.file), network_of(self.state["config"]), self.file.name, average=which == EMA)
        except UserError as error:
            raise UserError(f"{self.file}: {error}") from error


def open_pretrained(name: str, config: dict[str, Any] | None = None) -> Trained:
    """A run or one of its checkpoints, a folder in diffusers' format, OWNER/NAME on the Hub, or one file of weights.

    config: the settings of the network in a file, which carries none (guided-diffusion, improved-diffusion, DDIM, or ours), where
    conf/published.yaml does not know it by its name.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _file(path, published(path.name) or config)
    if path.is_dir():
        if is_folder(path):
            return _folder(path)
        if not (path / STATE).is_file() and not (path / "checkpoints").is_dir():
            raise UserError(f"{path}: no checkpoint there. Give a run directory (runs/EXPERIMENT/NAME), one of its checkpoints/step_N, a "
                            f"folder in diffusers' format (with {INDEX} or {UNET}), or a file of weights.")
        return checkpoint.find(path)
    if HUB_NAME.fullmatch(name) and not Path(name.split("/")[0]).is_dir():  # runs/NAME misspelt is no name on the Hub
        return _folder(download(name))
    raise UserError(f"{name}: no checkpoint there: no such folder or file, and no name on the Hugging Face Hub, which is OWNER/NAME.")


def open_with(name: str, trained_as: str | None, overrides: Sequence[str]) -> Trained:
    """open_pretrained for a command line: an experiment and overrides of it say the settings that a bare file of weights has."""
    if trained_as is None and not overrides:
        return open_pretrained(name)
    if not Path(name).expanduser().is_file():
        raise UserError(f"trained_as={trained_as}, overrides={list(overrides)}: these are for a bare file of weights, and {name} is none: "
                        "leave them out.")
    if trained_as is not None and trained_as not in options("experiment"):
        raise UserError(f"trained_as={trained_as}: no such experiment; {near(trained_as, options('experiment'))}")
    return _file(Path(name).expanduser(), composed("train", [*([f"+experiment={trained_as}"] if trained_as else []), *overrides]))


def published(file: str) -> dict[str, Any] | None:
    """The settings of a file that its publisher gave this name."""
    known = OmegaConf.to_container(OmegaConf.load(CONF / "published.yaml"))
    return composed("train", known[file]) if file in known else None


def _folder(path: Path) -> Pretrained:
    config, file = read_folder(path)
    if config["model"]["classes"]:
        log.warning(NO_NULL_CLASS, path)
    return _pretrained(path, file, config)


def _file(path: Path, config: dict[str, Any] | None) -> Pretrained:
    if path.suffix not in FILES:
        raise UserError(f"{path} is no file of weights, which ends in {', '.join(FILES)}. Of a run or a folder give the folder.")
    says = STATE if path.name in (MODEL, EMA) else UNET if path.stem == WEIGHTS else None
    if says and (path.parent / says).is_file():  # which is true, and other settings are not
        raise UserError(f"{path}: {says} beside it says what its network is: give the folder {path.parent} instead of the file.")
    if config is None:
        raise UserError(f"{path}: a file of weights does not say its network. Name the experiment of ours whose settings it has: "
                        "trained_as=NAME, or 'overrides=[\"model=NAME\", ...]'. (conf/published.yaml knows published files by name.)")
    try:
        config = with_ends(read_weights(path), {section: config[section] for section in SECTIONS}, path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return _pretrained(path, path, config)


def with_ends(found: Any, config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The config with the ends of the network as the file has them: channels of the image, variance, classes. A target may have other
    ones than its source, and transfer.fit fits them; what else differs is an error later on."""
    state = weights_of(found)
    first, last, table = (next((state[name] for name in names if name in state), None) for names in (FIRST, LAST, TABLES))
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        return config  # no network, which is said where it is converted
    channels = first.shape[1]
    has_null = not is_openai(state) and not is_diffusers(state)
    classes = 0 if table is None else len(table) - has_null
    if classes and not has_null:
        log.warning(NO_NULL_CLASS, path)
    variance = config["variance"]
    outputs = build(variance, ["diffusion"], "variance").outputs
    if len(last) in (channels, 2 * channels) and len(last) != outputs * channels:
        variance = {"_target_": f"diffusion.variance.{'FixedLarge' if outputs == 2 else 'LearnedRange'}"}
    adapted = config | {"model": config["model"] | {"in_channels": channels, "classes": classes}, "variance": variance,
                        "data": config["data"] | {"channels": channels}}
    if lines := differences(adapted, config):
        log.warning("%s: read with what the file itself shows (its settings -> the file's): %s", path, "; ".join(lines))
    return adapted


def _pretrained(path: Path, file: Path, config: dict[str, Any]) -> Pretrained:
    network_of(config)  # what is wrong with it shows here, before anything large is read
    digest = sha256(file)
    model = f"{digest}, model" if file == path else digest  # a bare file may hold the average beside it
    classes = [str(k) for k in range(config["model"].get("classes", 0))]
    return Pretrained(path, file, {"step": None, "config": config, "classes": classes, "sha256": {MODEL: model, EMA: digest}})


def read_weights(path: Path) -> Any:
    """What a file of weights holds: tensors in lists and dicts, and nothing that could run."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        found = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))  # torch below 1.6 wrote no zip
    except pickle.UnpicklingError as error:
        raise UserError(f"refused: it holds more than tensors, which could run any code on opening ({_line(error)}). If you trust it, save "
                        "its state dict alone as safetensors.") from error
    except Exception as error:  # a damaged file ends in whatever error its bytes lead to
        raise UserError(f"damaged, or no file of weights: {_line(error)}. Copy or download it again.") from error
    parts = found if isinstance(found, list | tuple) else [found]
    if any(not isinstance(name, str) for part in parts if isinstance(part, dict) for name in part):
        raise UserError("no state dict: its tensors are not under names. Save the dict of the network's tensors alone.")
    return found


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _converted(found: Any, network: UNet, file: str, average: bool) -> dict[str, Tensor]:
    """The tensors under our names, whosever they were. average: of a file that holds both."""
    if is_ddim(found):
        return from_ddim(found, network, average)
    if not isinstance(found, dict) or not found or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        shown = ", ".join(map(str, list(found)[:6])) if isinstance(found, dict) else type(found).__name__
        raise UserError(f"no state dict, but {shown or 'nothing'}: save the dict of the network's tensors alone.")
    if is_openai(found):
        return from_openai(found, network, new_attention_order=file == NEW_ATTENTION_ORDER)
    if is_diffusers(found):
        return from_diffusers(found, network)
    check_same(found, network.state_dict())
    return found


# --- the Hugging Face Hub ------------------------------------------------------------------------------------------------------------

BY_HAND = ("Or download it on another machine (huggingface-cli download OWNER/NAME --local-dir DIR), copy DIR here and give that folder "
           "instead of the name.")


def download(name: str) -> Path:
    """The folder of OWNER/NAME in the Hub's cache, with the configs and one file of weights, downloaded where it is not there yet."""
    try:
        import huggingface_hub  # not needed otherwise
    except ImportError:
        raise UserError(f"{name}: no such folder or file here, and a download from the Hugging Face Hub needs the package huggingface_hub: "
                        f"pip install huggingface_hub. {BY_HAND}") from None
    configs = [INDEX, UNET, SCHEDULER, f"unet/{UNET}", f"scheduler/{SCHEDULER}"]
    log.info("%s: no folder here, so it is taken from the Hugging Face Hub (or from its cache)", name)
    try:
        for suffix in ("safetensors", "bin"):  # .bin is code as well as weights, and only the second choice
            files = [f"{folder}{WEIGHTS}.{suffix}" for folder in ("", "unet/")]
            path = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*configs, *files]))
            if any((path / file).is_file() for file in files):
                break
    except Exception as error:  # of the network and of the Hub, from several packages
        reason = {"RepositoryNotFoundError": "there is no such name, or it is private", "GatedRepoError": "its owner has to grant access"}
        raise UserError(f"{name}: no such folder or file here, and the download from the Hugging Face Hub failed: "
                        f"{reason.get(type(error).__name__, _line(error))}. {BY_HAND}") from error
    return path
