"""The tests' own order: a folder for each package, and helpers that are no tests."""

from __future__ import annotations

import ast

import pytest

from tests.helpers import ROOT

TESTS = sorted((ROOT / "tests").rglob("*.py"))


def imported(source: str) -> set[str]:
    """Modules that are imported, and each name that is taken from one as if it were a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT / "tests")))
def test_no_test_imports_a_test(path):
    """What two tests need stands in tests/helpers, so that one can be read and changed alone."""
    parts = [name.split(".") for name in imported(path.read_text()) if name.startswith("tests.")]
    assert not [name for name in parts if any(part.startswith("test_") for part in name)]


def test_a_folder_of_tests_is_one_of_the_project():
    """`make test PART=transfer` runs what concerns transfer/."""
    folders = {path.parent.relative_to(ROOT / "tests") for path in TESTS}
    own = {"helpers", "kernels/interpreted"}
    assert all((ROOT / folder).is_dir() or str(folder) in own for folder in folders)
