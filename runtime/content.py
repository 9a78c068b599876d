"""What JSON can hold: hashed, compared."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any


def sha256_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(canonical(content), sort_keys=True).encode()).hexdigest()


def canonical(content: Any) -> Any:
    """The same in which 40.0 is 40: how a number is written makes no other run."""
    if isinstance(content, dict):
        return {key: canonical(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [canonical(value) for value in content]
    return int(content) if isinstance(content, float) and content.is_integer() else content


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Lines "path: theirs -> ours" for what two contents differ in."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lines = []
        for key in sorted(ours.keys() | theirs.keys()):
            lines += differences(ours.get(key), theirs.get(key), f"{path}.{key}".lstrip("."))
        return lines
    return [] if ours == theirs else [f"{path}: {theirs} -> {ours}"]


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of each value, with the path by which a command line sets it."""
    if isinstance(node, list) and any(isinstance(value, dict) for value in node):
        node = dict(enumerate(node))  # as transfer.penalties.0.weight
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    else:
        yield path, node
