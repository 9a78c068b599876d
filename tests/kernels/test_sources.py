"""What the sources of the kernels must not do, read with `ast`: what a GPU and the interpreter do
not both do, and do alike."""

import ast
from collections.abc import Iterator

import pytest

from tests.helpers import ROOT

KERNELS = ROOT / "kernels"
FORBIDDEN = {
    "atomic_": "atomics add in an order of their own: no two runs would be the same",
    "autotune": "configs come from kernels.configs; nothing is timed at start",
    "libdevice": "the interpreter has no libdevice",
}
STARTS = "launch.py"  # the one file that may start a kernel


def faults(source: str, starts: bool = False) -> list[str]:
    """ "line: what is wrong" for each fault. starts: the file may start kernels."""
    tree = ast.parse(source)
    found = [
        *unmasked_values(tree),
        *forbidden_names(tree),
        *([] if starts else starts_of_kernels(tree)),
    ]
    return [f"{node.lineno}: {what}" for node, what in found]


def unmasked_values(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """tl.load(pointer, mask, other), by position or by name, with the second and without the
    third."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "load"
            and is_tl(node.func.value)
        ):
            given = ["pointer", "mask", "other"][: len(node.args)] + [
                keyword.arg for keyword in node.keywords
            ]
            if "mask" in given and "other" not in given:
                yield node, "a masked load without other=: what it reads there is undefined"


def is_tl(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("tl", "language")


def forbidden_names(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        for forbidden, why in FORBIDDEN.items():
            if any(name.startswith(forbidden) for name in names(node)):
                yield node, f"{forbidden}: {why}"


def names(node: ast.AST) -> list[str]:
    """That a node itself spells out, as a name, an attribute or an import."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return [name]
        case ast.alias(name=name) | ast.ImportFrom(module=str(name)):
            return name.split(".")
    return []


def starts_of_kernels(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """kernel[grid](...)"""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            yield node, "a kernel is started by kernels.launch.Launch alone"


@pytest.mark.parametrize("path", sorted(KERNELS.rglob("*.py")), ids=lambda path: path.name)
def test_sources_have_no_faults(path):
    assert faults(path.read_text(), starts=path.name == STARTS) == []


@pytest.mark.parametrize(
    "source",
    [
        "tl.load(x, mask=m)",
        "tl.load(x, m)",
        "y = tl.load(x + tl.load(i, mask=m), mask=m, other=0.0)",
        "tl.atomic_add(x, 1)",
        "from triton.language import atomic_add",
        "from triton.language import atomic_max as greatest",
        "@triton.autotune(configs=[], key=[])\ndef kernel(): ...",
        "from triton import autotune",
        "tl.extra.cuda.libdevice.exp(x)",
        "from triton.language.extra import libdevice",
        "from triton.language.extra.libdevice import exp",
        "import triton.language.extra.libdevice as math",
        "kernel[grid](x)",
        "kernels['forward'][(1, 2)](x, num_warps=4)",
        "kernel[lambda meta: (1,)](x)",
    ],
)
def test_faults_are_found(source):
    assert len(faults(source)) >= 1


@pytest.mark.parametrize(
    "source",
    [
        "tl.load(x)",
        "tl.load(x, mask=m, other=0.0)",
        "tl.load(x, m, 0.0)",
        "json.load(file, mask=m)",
        "Launch(kernel, grid, arguments, constants, options).start()",
        "shapes[0].get(x)",
        "tl.sum(x)[0]",
    ],
)
def test_what_is_right_is_no_fault(source):
    assert faults(source) == []


def test_the_launcher_may_start_kernels():
    assert faults("kernel[grid](x)", starts=True) == []
