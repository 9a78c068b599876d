"""The Triton kernels under Triton's interpreter, and on a GPU where there is one:
tests/kernels/interpreted in processes of their own, as the mode is the process's, set before triton
is imported, and what is compiled ahead of time needs it unset. What is quick shares one process,
whose start costs eight seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT

INTERPRETED = ROOT / "tests/kernels/interpreted"
SLOW = [
    file
    for file in sorted(INTERPRETED.glob("test_*.py"))
    if "pytest.mark.slow" in file.read_text() or "norms.cases(" in file.read_text()
]


def passes(path: Path, marked: str, **environment: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {"TRITON_INTERPRET": "1"})
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--maxfail=20",
        "-m",
        marked,
        "-p",
        "no:cacheprovider",
        str(path),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-4000:]


@pytest.mark.timeout(900)
def test_interpreted():
    passes(INTERPRETED, "not slow")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", SLOW, ids=lambda file: file.stem)
def test_interpreted_slow(file):
    passes(file, "slow")


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_on_a_gpu():
    """The same cases, compiled; bf16 by a GPU's rounding."""
    passes(INTERPRETED, "slow or not slow", KERNELS_ON_CUDA="1")
