"""The floors of the house: imports go down only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

FLOORS = [
    ["runtime"],
    ["kernels", "diffusion", "data"],
    ["models"],
    ["config"],
    ["transfer"],
    ["sampling"],
    ["metrics"],
    ["training"],
    ["evaluation"],
    ["reporting"],
    ["studies"],
    ["hydra_plugins"],
]
APART = {
    "transfer": {"metrics"},
    "sampling": {"metrics"},
    "reporting": {"transfer", "sampling", "models", "kernels", "diffusion", "data"},
    "metrics": {"transfer", "sampling", "config"},
}
BELOW = {
    package: {p for floor in FLOORS[:k] for p in floor} - APART.get(package, set())
    for k, packages in enumerate(FLOORS)
    for package in packages
}


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_every_package_imports_only_what_lies_below_it():
    ours = set(BELOW)
    for package, allowed in BELOW.items():
        for path in (ROOT / package).rglob("*.py"):
            upward = (imported(path) & ours) - allowed - {package}
            assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


def test_nothing_imports_the_scripts():
    scripts = {p.stem for p in ROOT.glob("*.py")}
    for package in BELOW:
        for path in (ROOT / package).rglob("*.py"):
            assert not imported(path) & scripts, path


def test_every_package_is_on_a_floor():
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages <= set(BELOW)


@pytest.mark.parametrize("script", ["sample", "report"])
def test_a_script_starts_from_nothing(script):
    """The others do so in tests of theirs; what tests/helpers/runs.py forks has everything imported
    already."""
    done = subprocess.run(
        [sys.executable, f"{script}.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    said = done.stdout + done.stderr
    assert f"python {script}.py" in said and "Traceback" not in said, said
