"""transfer_celeba_to_medical with its real model (78.7 M parameters) on real files: gray and RGB,
interrupted and resumed.

Minutes and gigabytes, so slow; skipped where ../shared/data is not. Nothing of what it writes is
kept.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.helpers import SHARED as DATA
from tests.helpers import runs

SMALL = [
    "train.batch_size=4",
    "train.warmup=0",
    "train.precision=fp32",
    "sampler.steps=2",
    "run.device=cpu",
    "run.log_every=1",
    "run.held_out_draws=10",
    "run.samples=1",
    "run.sample_every=100",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the real images in {DATA}"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """CelebA's 558 files, MedNIST at 64 and PneumoniaMNIST at 28, as a user has them."""
    root = tmp_path_factory.mktemp("files")
    for name in ("faces_celeba558_native", "med_mednist64"):
        with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
            archive.extractall(root)
    shutil.copy(DATA / "med_pneumoniamnist28.npz", root / "pneumoniamnist.npz")
    return root


@pytest.fixture(scope="module")
def source(files, tmp_path_factory) -> Path:
    """Two steps of pretrain_celeba: enough to be a source."""
    root = tmp_path_factory.mktemp("source")
    arguments = [
        "+experiment=pretrain_celeba",
        f"data.path={files}/faces_celeba558",
        "train.steps=2",
        *SMALL,
    ]
    code, text = runs.launch(root, arguments, tiny=[]).wait(900)
    assert code == 0 and "448 training images, 78.70M parameters" in text, text
    return runs.directory_of(root)


def transfer(root: Path, source: Path, target: list[str], steps: int) -> str:
    arguments = [
        "+experiment=transfer_celeba_to_medical",
        f"source.from={source}",
        *target,
        f"train.steps={steps}",
        "run.checkpoint_every=1",
        *SMALL,
    ]
    code, text = runs.launch(root, arguments, tiny=[]).wait(900)
    assert code == 0, text
    return text


TARGETS = {
    "mednist gray": ("data=folder data.path={}/med_mednist64 data.size=64 data.channels=1", 13_500),
    "mednist rgb": ("data=folder data.path={}/med_mednist64 data.size=64 data.channels=3", 13_500),
    "pneumonia from 28 pixels": ("data.root={} data.file_size=28 data.upscale=true", 4_682),
}


@pytest.mark.parametrize("name", TARGETS)
def test_transfer_celeba_to_medical_resumes_to_the_bit(name, files, source, tmp_path):
    target, images = TARGETS[name]
    target = target.format(files).split()
    text = transfer(tmp_path / "stopped", source, target, 2)
    assert f"{images:,}".replace(",", "") + " training images" in text
    assert "resuming at step 2" in transfer(tmp_path / "stopped", source, target, 3)
    transfer(tmp_path / "whole", source, target, 3)
    ours, whole = (runs.directory_of(tmp_path / kind) for kind in ("stopped", "whole"))
    runs.assert_same_weights(ours, whole, 3)
    statuses = [t["status"] for t in json.loads((ours / "source.json").read_text())["tensors"]]
    resized = 0 if "rgb" in name else 3
    assert (
        statuses.count("loaded") == len(statuses) - resized and statuses.count("resized") == resized
    )
    if resized:
        assert "summed over 3 input channels" in text and "mean over 3 output channels" in text
