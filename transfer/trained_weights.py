"""Trained weights from wherever a user has them: a run, published weights, or what export.py writes
of a run. They come out as a plain network has them: adapters are merged, and a difference from a
source is laid on it."""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from omegaconf import OmegaConf
from torch import nn

from config.overrides import CONF, composed, options
from config.run_config import RunConfig, found_images
from data.image_reader import MEANWHILE
from models.formats.diffusers import INDEX, UNET, is_folder, read_folder
from models.formats.hub import HUB_NAME, download
from models.formats.misfit import Tensors
from models.formats.published import open_file, tensors_of
from runtime import checkpoint
from runtime.checkpoint import EMA, FILES, STATE, Checkpoint, Which
from runtime.download import weights_named
from runtime.errors import UserError, near
from runtime.files import Damaged, put_aside, read_sealed, sha256, write_sealed
from runtime.places import find_again
from runtime.seeds import derive
from transfer.adapt_weights import Fit, fit
from transfer.merge_adapters import merged, without_adapters

SOURCE = "source.json"  # of a run: where its weights came from, and what became of every tensor
NOT_KEPT = ("tensors", "found")  # of it by a difference
DIFFERENCE = "difference from a source"  # the one metadata key of such a file
AVERAGES = "averages"  # of a run, the folder of those of train.ema_lengths
# in it, the one that was chosen (training.choose_average), and how it was
CHOSEN, CHOICE = "chosen.safetensors", "chosen.json"
Origin = dict[str, Any]  # what source.json says


@dataclass(frozen=True)
class TrainedWeights:
    """One thing that was trained, opened.

    Attributes:
        path: of the checkpoint, folder or file.
        config: of published weights some sections alone (models.formats.published.SECTIONS).
        classes: their names.
        step: None where it is not known, as of what is no checkpoint of a run.
        digests: sha256 of each set.
        load: reads one of them, under our names.
        laid_on: of a difference, the source that it is laid on.
    """

    path: Path
    config: RunConfig
    classes: Sequence[str]
    step: int | None
    digests: dict[Which, str]
    load: Callable[[Which], Tensors] = field(compare=False)
    laid_on: Origin | None = None

    @property
    def origin(self) -> Origin:
        """Where the run that made them started from.

        Raises:
            UserError: where that is unknown.
        """
        if self.laid_on is not None:
            return self.laid_on
        if self.step is None:
            raise UserError(
                f"reference=source: {self.path} is no run of this project, so what it was made "
                "from is unknown."
            )
        return origin_of(self.path.parent.parent)


def load_weights(
    name: str,
    *,
    stated: RunConfig | None = None,
    otherwise: RunConfig | None = None,
    source: str | None = None,
) -> TrainedWeights:
    """Opens a run or one of its checkpoints, a folder in diffusers' format, OWNER/NAME on the Hub,
    one file of weights, which is fetched where conf/published.yaml knows its name and it is not
    here, or a file of a run's difference from its source. Tensors are read later, by load.

    Args:
        stated: the settings of the network in a bare file, as the user states them.
        otherwise: those to take where neither the user nor conf/published.yaml states them.
        source: where the source of a difference is, if it was moved.
    Raises:
        UserError: where there is none, or it does not say what it is.
    """
    fetched = weights_named(name, MEANWHILE) if name in published_settings() else None
    if fetched is not None:
        return _of_fetched(name, fetched, stated)
    path = Path(name).expanduser()
    if said := said_of_difference(path):
        return open_difference(path, said, source)
    if path.is_file():
        config = stated or published_config(path.name) or otherwise
        sections = open_file(path, config.raw if config else None)
        return of_published(path, sections, dict.fromkeys(FILES, path))
    if path.is_dir():
        if is_folder(path):
            return of_published(path, *read_folder(path))
        if not (path / STATE).is_file() and not (path / "checkpoints").is_dir():
            raise UserError(
                f"{path}: no checkpoint there. {checkpoint.told_below(path)}Give a run directory "
                "(runs/EXPERIMENT/NAME), one of its checkpoints/step_N, a folder in diffusers' "
                f"format (with {INDEX} or {UNET}), or a file of weights."
            )
        return of_checkpoint(checkpoint.find(path))
    # runs/NAME misspelt is no name on the Hub
    if HUB_NAME.fullmatch(name) and not Path(name.split("/")[0]).is_dir():
        path = download(name)
        return of_published(path, *read_folder(path))
    raise UserError(
        f"{name}: no checkpoint there: no such folder or file, no name on the Hugging Face Hub, "
        f"which is OWNER/NAME, and no published file; {near(name, published_settings())}"
    )


def _of_fetched(name: str, path: Path, stated: RunConfig | None) -> TrainedWeights:
    """A published file in torch's folder, which nobody's checksum may have been there to check."""
    config = stated or published_config(name)
    if config:
        config.shape_network()  # what is wrong with the settings is no fault of the file
    try:
        sections = open_file(path, config.raw if config else None)
    except UserError as error:
        raise UserError(f"{error} Remove it, and the same command fetches it.") from error
    return of_published(path, sections, dict.fromkeys(FILES, path))


def stated_config(name: str, trained_as: str | None, overrides: Sequence[str]) -> RunConfig | None:
    """The settings that a command line states for a bare file of weights: an experiment, and
    overrides of it.

    Raises:
        UserError: where it is no bare file, or the experiment is unknown.
    """
    if trained_as is None and not overrides:
        return None
    if not Path(name).expanduser().is_file() and name not in published_settings():
        raise UserError(
            f"trained_as={trained_as}, overrides={list(overrides)}: these are for a bare file of "
            f"weights, and {name} is none: leave them out."
        )
    known = options("experiment")
    if trained_as is not None and trained_as not in known:
        raise UserError(f"trained_as={trained_as}: no such experiment; {near(trained_as, known)}")
    experiment = [f"+experiment={trained_as}"] if trained_as else []
    return RunConfig(composed("train", [*experiment, *overrides]))


@cache
def published_settings() -> dict[str, list[str]]:
    """Of each file that conf/published.yaml knows by its name, the settings that it has."""
    known: Any = OmegaConf.to_container(OmegaConf.load(CONF / "published.yaml"))
    return known


def published_config(file: str) -> RunConfig | None:
    """The settings of a file that its publisher gave this name."""
    settings = published_settings().get(file)
    return RunConfig(composed("train", settings)) if settings else None


def of_published(path: Path, sections: dict[str, Any], files: dict[Which, Path]) -> TrainedWeights:
    """files: where the tensors of either set are."""
    config = RunConfig(sections)
    config.shape_network()  # what is wrong with it shows here, before anything large is read
    digest_of = {file: sha256(file) for file in set(files.values())}
    digests = {which: digest_of[file] for which, file in files.items()}
    if path.is_file():  # which may hold the average beside the last iterate
        digests["model"] += ", model"
    classes = [str(k) for k in range(config.classes)]

    def read(which: Which) -> Tensors:
        return tensors_of(files[which], config.shape_network(), average=which == "ema")

    return TrainedWeights(path, config, classes, None, digests, read)


def of_checkpoint(found: Checkpoint) -> TrainedWeights:
    """Of a network with adapters, these merged into its weights."""
    config = RunConfig.of_saved(found.config)
    run = found.path.parent.parent
    config = config.with_sections(data=found_images(config.raw["data"], run))
    adapted = bool(found.config.get("transfer", {}).get("inject"))

    def read(which: Which) -> Tensors:
        tensors = found.weights(FILES[which])
        return merged(config, tensors) if adapted else tensors

    plain = without_adapters(config) if adapted else config
    digests = {which: found.digests[file] for which, file in FILES.items()}
    return TrainedWeights(found.path, plain, found.classes, found.step, digests, read)


def open_weights(
    name: str,
    which: Which,
    *,
    stated: RunConfig | None = None,
    otherwise: RunConfig | None = None,
    source: str | None = None,
) -> TrainedWeights:
    """What has this set of weights: for average a run, else what load_weights takes, see there."""
    if which == "average":
        return average_of(Path(name).expanduser())
    return load_weights(name, stated=stated, otherwise=otherwise, source=source)


def average_of(path: Path) -> TrainedWeights:
    """The average that was chosen for a run. It is one whole network, whichever set is asked for.

    Args:
        path: the run's directory, or the average's file in it.
    Raises:
        UserError: where that is no run, none was chosen, or the run was trained further since.
    """
    run = path.parent.parent if path.name == CHOSEN else path
    if not (run / "checkpoints").is_dir():
        raise UserError(
            f"weights=average: {run} is no run of this project, and the average is one of a whole "
            "run: give runs/EXPERIMENT/NAME, or take weights=ema."
        )
    choose = f"choose one by\n  python -m training.choose_average {run}"
    try:
        about = read_sealed(run / AVERAGES / CHOICE, choose, ["step", "reached", "sha256"])
    except FileNotFoundError:
        raise UserError(
            f"weights=average: of the averages that {run} kept (train.ema_lengths) none was chosen "
            f"yet; {choose}"
        ) from None
    found = checkpoint.find(run)
    if found.step != about["reached"]:
        raise UserError(
            f"weights=average: it was chosen when {run} was at step {about['reached']}, and that "
            f"is at step {found.step} now; {choose}"
        )
    path, digest = run / AVERAGES / CHOSEN, about["sha256"]
    config = RunConfig.of_saved(found.config)
    if not path.is_file() or sha256(path) != digest:
        raise UserError(f"{path} is missing or damaged; {choose}")

    def read(which: Which) -> Tensors:
        tensors = safetensors.torch.load_file(path)
        return merged(config, tensors) if config.transfer.inject else tensors

    digests: dict[Which, str] = dict.fromkeys(("average", *FILES), digest)
    return replace(of_checkpoint(found), path=path, step=about["step"], digests=digests, load=read)


def fitted(
    config: RunConfig, network: nn.Module, source: TrainedWeights
) -> tuple[Tensors, list[Fit]]:
    """The source's weights in the shapes of a run's network, which is as it was initialized, and
    what became of each tensor."""
    settings, kept = config.source, config.kept_classes(source.config)
    return fit(source.load(settings.weights), network.state_dict(), settings, kept, config.seed)


def start_of(config: RunConfig, source: TrainedWeights) -> Tensors:
    """The weights that a run with this config started from."""
    torch.manual_seed(derive(config.seed, "weights"))
    return fitted(config, config.build_network(), source)[0]


def source_of(origin: Origin, config: RunConfig, elsewhere: str | None) -> TrainedWeights:
    """The source that a run with this config started from.

    Args:
        elsewhere: where it is, if not at its path.
    Raises:
        UserError: where it is gone or is another one.
    """
    found_at: str = origin.get("found") or origin["path"]
    # what was downloaded may be elsewhere on this machine, or not yet here
    moved = not Path(found_at).exists()
    where = elsewhere or (moved and downloaded_name(origin)) or found_at
    try:
        which: Which = "average" if origin["weights"] == CHOSEN else "ema"
        found = open_weights(where, which, otherwise=config)
    except UserError as error:
        why = error if elsewhere or Path(found_at).exists() else _why_gone(Path(found_at))
        raise UserError(
            f"the source of this run is needed, and was in {origin['path']}: {why}\nIf it was "
            "moved, move it back, or say where to: source=PATH."
        ) from error
    if found.digests["ema" if origin["weights"] == EMA else "model"] != origin["sha256"]:
        raise UserError(
            f"{where} is not the source of this run: its weights have another sha256. Say where "
            "that one is: source=PATH."
        )
    if left_without_classes(config, found.config) and "null_row" not in origin:
        raise UserError(
            f"this run started from {where} without the null row of its class table, as an older "
            "version of this code did, and its start cannot be made again: train it anew."
        )
    return found


def _why_gone(path: Path) -> str:
    """What became of a source that was at path."""
    steps = [found.step for found in checkpoint.all_checkpoints(path.parent)]
    number = path.name.removeprefix("step_")
    if number.isdigit() and steps and steps[-1] > int(number):
        return (
            "no checkpoint there any more. The run that it was of was trained further since, to "
            f"step {steps[-1]}, and keeps its newest checkpoints alone."
        )
    return "no checkpoint there any more, it is gone."


def downloaded_name(origin: Origin) -> str | None:
    """The name by which the source was downloaded; None where it was a path here."""
    name = str(origin.get("from"))
    is_name = name in published_settings() or HUB_NAME.fullmatch(name)
    return name if is_name and not origin["path"].startswith(name) else None


def left_without_classes(config: RunConfig, source: RunConfig) -> bool:
    """Whether a source with classes goes to a network without."""
    return bool(source.classes) and not config.classes


# source.json


def write_origin(run: Path, origin: Origin, tensors: Sequence[Fit]) -> None:
    """tensors: what became of each."""
    write_sealed(run / SOURCE, origin | {"tensors": [row._asdict() for row in tensors]}, indent=1)


def read_origin(run: Path) -> Origin | None:
    """What source.json says; None where the run had no source.

    Raises:
        Damaged: where it is not what was written.
    """
    path = run / SOURCE
    if not path.is_file():
        return None
    keys = ["path", "weights", "sha256", "tensors"]
    mend = "copy it again from where the run was trained"
    return _found_again(read_sealed(path, mend, keys, unsealed=True), run)


def _found_again(origin: Origin, noted_in: Path) -> Origin:
    """With its path as it is found from here, which is not kept."""
    return origin | {"found": find_again(origin["path"], noted_in, origin.get("folder"))}


def has_origin(run: Path) -> bool:
    """Whether source.json is there and whole. One that is damaged is put aside: a run that goes on
    makes it again, of its source."""
    try:
        return read_origin(run) is not None
    except Damaged as error:
        put_aside(run / SOURCE, str(error).split(": copy it")[0])
        return False


def origin_of(run: Path) -> Origin:
    """What source.json says, as read_origin.

    Raises:
        UserError: where the run had no source.
    """
    origin = read_origin(run)
    if origin is None:
        raise UserError(f"{run} was not started from a source (it has no {SOURCE}).")
    return origin


def fit_table(run: Path) -> list[Fit]:
    """What became of the source's tensors; empty without a source."""
    origin = read_origin(run)
    return [Fit(**row) for row in origin["tensors"]] if origin else []


# a difference from a source


def difference(found: Checkpoint, origin: Origin, names: Collection[str]) -> bytes:
    """A file of the tensors `names`, the average, with all that it takes to lay them on the source
    again."""
    average = found.weights(EMA)
    tensors = {name: average[name].contiguous() for name in names}
    about = {
        "config": found.config,
        "step": found.step,
        "classes": list(found.classes),
        "sha256": digest_of_tensors(tensors),
        "source": {key: value for key, value in origin.items() if key not in NOT_KEPT},
    }
    return safetensors.torch.save(tensors, {DIFFERENCE: json.dumps(about, sort_keys=True)})


def digest_of_tensors(tensors: Tensors) -> str:
    """sha256 of their names, shapes and values."""
    return hashlib.sha256(safetensors.torch.save(dict(sorted(tensors.items())))).hexdigest()


def said_of_difference(path: Path) -> str | None:
    """What a file of a difference says of itself; None for any other.

    Raises:
        UserError: for a damaged file of tensors, which may be one.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(DIFFERENCE)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path}: damaged, or no file of weights: {error}. Copy or download it again."
        ) from error


def open_difference(path: Path, said: str, elsewhere: str | None) -> TrainedWeights:
    """A file that difference() made.

    Args:
        said: what it says of itself.
        elsewhere: where the source is, if not where it was.
    Raises:
        UserError: where the source is gone, or the file damaged.
    """
    try:
        about = json.loads(said)
        config = RunConfig.of_saved(about["config"])
        origin = _found_again(about["source"], path)
        plain, classes, expected = without_adapters(config), about["classes"], about["sha256"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged: what it says of itself cannot be read ({error}). Copy or make it "
            "again."
        ) from error
    source = source_of(origin, config, elsewhere)

    def read(which: Which) -> Tensors:
        tensors = safetensors.torch.load_file(path)
        if digest_of_tensors(tensors) != expected:
            raise UserError(
                f"{path}: damaged: its tensors do not have the sha256 that it says. Copy or make "
                "it again."
            )
        return merged(config, start_of(config, source) | tensors)

    digests = dict.fromkeys(FILES, sha256(path))
    return TrainedWeights(path, plain, classes, None, digests, read, origin)
