"""One NIfTI file, whatever its name says of how it is compressed, with a header as the standard
means it."""

import gzip
import io
import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from runtime.errors import UserError

GZIP = b"\x1f\x8b"
KINDS = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}  # by the first number of a file
MOST_CHANNELS = 64  # more are perhaps a series of times
TURNED = 0.5  # the cosine of an angle that no registration turns by
FORMS = ("sform", "qform")  # how a volume lies, the first that says so


def open_volume(path: Path) -> tuple[Any, list[str]]:
    """The image of nibabel, of three dimensions or of channels in a fourth, others being one deep,
    and what was mended in its header.

    Raises:
        UserError: for what is no volume of real numbers.
    """
    compressed = path.open("rb").read(2) == GZIP
    with gzip.open(path) if compressed else path.open("rb") as file:
        start = file.read(min(KINDS)) + file.read(max(KINDS) - min(KINDS))
    kind = next(
        (k for n, k in KINDS.items() if n.to_bytes(4, "little") in (start[:4], start[3::-1])), None
    )
    if kind is None or len(start) < kind.header_class.sizeof_hdr:
        raise UserError("no NIfTI file: it does not begin as one")
    header = kind.header_class(start[: kind.header_class.sizeof_hdr], check=False)
    odd = mend(header)
    if odd or compressed != path.name.lower().endswith(".gz"):
        data = path.read_bytes()
        data = gzip.decompress(data) if compressed else data
        image: Any = kind.from_stream(io.BytesIO(header.binaryblock + data[header.sizeof_hdr :]))
    else:
        image = nibabel.load(path)
    _check_volume(image)
    if not any(header[f"{form}_code"] > 0 for form in FORMS):
        odd.append("neither sform nor qform says how the volume lies: left and right are a guess")
    elif _contradict(header):
        odd.append("sform and qform contradict each other, such as left and right: the sform holds")
    return image, odd


def _contradict(header: Any) -> bool:
    """Whether an axis of the voxels runs another way in each of two that are there."""
    if not all(header[f"{form}_code"] > 0 for form in FORMS):
        return False
    axes = [getattr(header, f"get_{form}")()[:3, :3] for form in FORMS]
    cosines = np.prod([each / np.linalg.norm(each, axis=0) for each in axes], 0).sum(0)
    return bool(cosines.min() < TURNED)


def mend(header: Any) -> list[str]:
    """What is void counts as absent. Returns what was, for a warning."""
    odd = []
    if header.is_single and header["vox_offset"] == 0:
        header["vox_offset"] = header.single_vox_offset
        odd.append("vox_offset is 0")
    if math.isfinite(header["scl_slope"]) and not math.isfinite(header["scl_inter"]):
        header["scl_inter"] = 0
        odd.append("scl_inter is no number, taken as 0")
    qfac, *sizes = np.nan_to_num(header["pixdim"], posinf=0, neginf=0)
    if not (header["pixdim"][1 : 1 + header["dim"][0]][:3] > 0).all():
        odd.append("a size of the voxels is not above 0, taken as 1 or without its sign")
    header["pixdim"] = [qfac if abs(qfac) == 1 else 1, *(abs(size) or 1 for size in sizes)]
    for form in FORMS:
        if header[f"{form}_code"] > 0 and not _is_affine(header, form):
            header[f"{form}_code"] = 0
            odd.append(f"{form} is void")
    return odd


def _is_affine(header: Any, form: str) -> bool:
    """Whether three axes are three directions."""
    try:
        axes = getattr(header, f"get_{form}")()[:3, :3]
        lengths = np.linalg.norm(axes, axis=0)
        return bool((lengths > 0).all() and np.linalg.matrix_rank(axes / lengths) == 3)
    except (
        ValueError,
        ArithmeticError,
        np.linalg.LinAlgError,
        nibabel.spatialimages.HeaderDataError,
    ):
        return False


def _check_volume(image: Any) -> None:
    if not isinstance(image, nibabel.Nifti1Pair):  # CIFTI: a matrix of vertices, say
        raise UserError(f"no volume of voxels, but {type(image).__name__}")
    shape, kind = image.shape, image.get_data_dtype()
    if kind.names:
        raise UserError("voxels of colours: save it as gray")
    if kind.kind == "c":
        raise UserError(
            "complex numbers: save the magnitude, numpy.abs(numpy.asarray(image.dataobj))"
        )
    channels = math.prod(shape[3:])
    if channels > MOST_CHANNELS or channels not in (1, *shape[3:]):
        raise UserError(
            f"{len(shape)} dimensions {list(shape)}: a series and not a volume. Save each of "
            "its volumes as a file of its own, in one folder for each patient"
        )
