"""How configs were written before. A run of then is translated where it is read, a user is told the
spelling of now, and runs keep the names that they have."""

import re
from typing import Any

from data.settings import OWN_KEYS
from runtime.content import leaves
from runtime.errors import UserError

RENAMED = {  # _target_: of then, and of now
    "transfer.fit.values": "transfer.adapt_weights.values",
    "transfer.fit.mean_and_variance": "transfer.adapt_weights.mean_and_variance",
    "transfer.rows.NewRows": "transfer.textual_inversion.NewRows",
    "transfer.scale.BranchScale": "transfer.difffit.BranchScale",
    "transfer.similarity.PairwiseSimilarity": "transfer.pairwise_similarity.PairwiseSimilarity",
    "transfer.spectral.SpectralShift": "transfer.svdiff.SpectralShift",
    **{
        f"diffusion.samplers.{name}_steps": f"diffusion.spacing.{name}_steps"
        for name in ("even", "inclusive", "log_snr", "quadratic", "trailing")
    },
    "data.bundled.Faces": "data.sources.bundled.Faces",
    "data.bundled.Tissue": "data.sources.bundled.Tissue",
    "data.celeba.CelebA": "data.sources.celeba.CelebA",
    "data.cifar10.Cifar10": "data.sources.cifar10.Cifar10",
    "data.dicom.Dicom": "data.sources.dicom.Dicom",
    "data.folder.Folder": "data.sources.folder.Folder",
    "data.medmnist.MedMnist": "data.sources.medmnist.MedMnist",
    "data.nifti.Nifti": "data.sources.nifti.Nifti",
    "data.npz.Npz": "data.sources.npz.Npz",
}
MEDMNIST = "data.sources.medmnist.MedMnist"
GONE = re.compile(r"[+~]*data\.(source\.)?download\b")  # where the reader is MEDMNIST
KEYS = {"size": "file_size"}  # inside data.source, of then, and in data, of now
THEN = {new: old for old, new in (RENAMED | KEYS).items()}


def translate(config: dict[str, Any]) -> dict[str, Any]:
    """A config, or some sections of one, in the spelling of now."""
    config = _with_targets(config, RENAMED)
    data, source = config.get("data"), config.get("source")
    if isinstance(data, dict):
        config["data"] = _translate_data(data)
    if isinstance(source, dict) and isinstance(source.get("overrides"), list):
        config["source"] = source | {"overrides": list(map(_translate_line, source["overrides"]))}
    return config


def as_then(config: dict[str, Any]) -> dict[str, Any]:
    """Sections of a config in the spelling by which runs, evaluations and folders of images are
    named. For data see identity."""
    config = _with_targets(config, THEN)
    if overrides := config.get("source", {}).get("overrides"):
        lines = [re.sub(r"^([+~]*data\.)(\w+)", _key_then, line) for line in overrides]
        config["source"] |= {"overrides": lines}
    return config


def refuse_old_override(line: str, reader: Any = None) -> None:
    """Checks one line of a command. reader: the target of section data; where it is not known yet,
    None, what may be GONE passes.

    Raises:
        UserError: with the new spelling.
    """
    if GONE.match(line) and reader in (None, MEDMNIST):
        if reader:
            raise UserError(_gone(line))
        return
    if (new := re.sub(r"^(metrics=.*)\bfloors\b", r"\1baselines", line)) != line:
        raise UserError(f"{line}: this is written {new} now.")
    if (new := _translate_line(line)) != line:
        raise UserError(
            f"{line}: this is written {new} now. Images are data.*; source.* is about the "
            "weights that a run starts from."
        )


def refuse_old_config(config: dict[str, Any]) -> None:
    """The same of a composed config: what is old in it stands in a YAML of the user's."""
    then, now = (dict(leaves(c)) for c in (config, translate(config)))
    if old := [key for key, value in then.items() if key not in now or now[key] != value]:
        for key in old:
            if GONE.match(key) and _translate_line(key) not in now:
                raise UserError(_gone(f"{key}={then[key]}"))
        new = [key for key in dict.fromkeys(map(_translate_line, old)) if key in now]
        raise UserError(
            f"{', '.join(f'{key}={then[key]}' for key in old)}: this is written "
            f"{', '.join(f'{key}={now[key]}' for key in new)} now."
        )


def _gone(line: str) -> str:
    return f"{line}: leave it out, as MedMNIST is fetched without it now where it is missing."


def _translate_data(data: dict[str, Any]) -> dict[str, Any]:
    if isinstance(data.get("source"), dict):
        reader = {KEYS.get(key, key): value for key, value in data["source"].items()}
        reader.pop("_partial_", None)
        data = {key: data[key] for key in data if key != "source"} | reader
    if data.get("_target_") == MEDMNIST:
        data = {key: value for key, value in data.items() if key != "download"}
    return data


def _translate_line(line: str) -> str:
    found = re.match(r"([+~]*data)\.source(?:\.(\w+))?(?!\w)", line)
    if not found:
        return line
    key = found[2] and "." + KEYS.get(found[2], found[2])
    return f"{found[1]}{key or ''}{line[found.end() :]}"


def _key_then(key: re.Match[str]) -> str:
    return key[0] if key[2] in OWN_KEYS else f"{key[1]}source.{THEN.get(key[2], key[2])}"


def _with_targets(node: Any, names: dict[str, str]) -> Any:
    if isinstance(node, list):
        return [_with_targets(each, names) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        key: names.get(value, value)
        if key == "_target_" and isinstance(value, str)
        else _with_targets(value, names)
        for key, value in node.items()
    }
