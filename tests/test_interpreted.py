"""The Triton kernels under Triton's interpreter, each file of tests/interpreted in a process of its own: the mode is the process's, set
before triton is imported, and what is compiled ahead of time needs it unset."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "tests" / "interpreted").glob("test_*.py"))
SLOW = [file for file in FILES if "pytest.mark.slow" in file.read_text() or "norms.cases(" in file.read_text()]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("file", "marked"), [*((file, "not slow") for file in FILES),
                                              *(pytest.param(file, "slow", marks=pytest.mark.slow) for file in SLOW)],
                         ids=lambda value: getattr(value, "stem", value))
def test_interpreted(file, marked):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", marked, "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-4000:]
