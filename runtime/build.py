"""From configuration to objects. The constructor's signature is the schema: keys and types are checked against it, with the near
names in the message, before anything is built.

Configurations also arrive inside checkpoints, which are foreign input: a target must be defined in the package that the
caller names, judged by the module where the object is defined and not by the path that leads to it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from runtime.errors import UserError, near

SPECIAL = {"_target_", "_partial_"}


def resolve(target: Any, packages: Sequence[str], where: str) -> Any:
    """The class or function that target names, if one of packages defines it."""
    module, _, name = str(target).rpartition(".")
    if any(module == p or module.startswith(p + ".") for p in packages):
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            raise UserError(f"{where}._target_: there is no {target}.") from None
        home = getattr(found, "__module__", "")
        if callable(found) and any(home == p or home.startswith(p + ".") for p in packages):
            return found
    raise UserError(f"{where}._target_: {target} is not defined in {' or '.join(packages)}, and nothing else is built from a config.")


def check(node: dict, packages: Sequence[str], where: str, given: Sequence[str] = ()) -> None:
    """Compares a node (and those inside it) with the signature of its target. given: arguments that the caller adds."""
    check_arguments(resolve(node.get("_target_"), packages, where), node, packages, where, given)


def check_arguments(target: Any, node: dict, packages: Sequence[str], where: str, given: Sequence[str] = ()) -> None:
    """The same with the target known. A parameter `from_` is the key `from`."""
    parameters, hints = _schema(target)
    for key, value in node.items():
        if key in SPECIAL:
            continue
        if key not in parameters or key in given:
            open_ones = {n for n, p in parameters.items() if not node.get("_partial_") or p.default is not p.empty or n in node}
            raise UserError(f"{where}.{key}: no such setting; {near(key, open_ones - set(given))}")
        if nodes := _nodes(value):
            if isinstance(value, list) != _takes_list(hints.get(key)):
                found = "a list" if isinstance(value, list) else "one group"
                raise UserError(f"{where}.{key} must be {describe(hints[key])}, and is {found} here: {value}")
            for place, node_inside in nodes:
                check(node_inside, packages, f"{where}.{key}{place}")
        elif not fits(value, hints.get(key, Any)):
            raise UserError(f"{where}.{key}={value!r} is not {describe(hints[key])}.")
    if not node.get("_partial_"):
        missing = [n for n, p in parameters.items()
                   if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and n not in node and n not in given]
        if missing:
            raise UserError(f"{where}.{missing[0]} must be set.")


@functools.cache
def _schema(target: Any) -> tuple[Mapping[str, inspect.Parameter], Mapping[str, Any]]:
    """The parameters of a class or function and their types, by key."""
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    return ({name.rstrip("_"): p for name, p in inspect.signature(target).parameters.items()},
            {name.rstrip("_"): hint for name, hint in hints.items()})


def _nodes(value: Any) -> list[tuple[str, dict]]:
    """The nodes that a value is or, as a list, holds, with their places in it."""
    if isinstance(value, dict) and "_target_" in value:
        return [("", value)]
    if isinstance(value, list) and value and all(isinstance(v, dict) and "_target_" in v for v in value):
        return [(f"[{k}]", v) for k, v in enumerate(value)]
    return []


def _takes_list(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return inspect.isclass(origin) and issubclass(origin, Sequence)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from YAML is of the annotated type. An int is a float; lists are any sequence."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint in (None, type(None)):
        return value is None
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, int | float)
    if hint in (int, str):
        return isinstance(value, hint)
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return isinstance(value, list) and all(fits(v, arguments[0]) for v in value)
    return isinstance(value, dict) if dict in (hint, origin) else False


def describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null",
             dict: "a mapping"}
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"a list in which each is {describe(arguments[0])}"
    return names.get(hint, f"a {getattr(hint, '__name__', hint)} (a group with _target_)")


def build(node: dict, packages: Sequence[str], where: str, **given: Any) -> Any:
    """Checks and builds a node: the target called with its settings and what the caller gives, or, with _partial_, bound to them."""
    check(node, packages, where, list(given))
    target = resolve(node["_target_"], packages, where)
    settings = arguments_of(target, node, packages, where)
    if node.get("_partial_"):
        return functools.partial(target, **settings, **given)
    try:
        return target(**settings, **given)
    except UserError:
        raise
    except ValueError as error:  # a part's own word on its settings
        raise UserError(f"{where}: {error}") from error


def arguments_of(target: Any, node: dict, packages: Sequence[str], where: str) -> dict[str, Any]:
    """A node's settings as arguments of target: nested nodes built, keywords such as `from` spelled `from_`."""
    names = {key: parameter.name for key, parameter in _schema(target)[0].items()}
    settings = {}
    for key, value in node.items():
        if key not in SPECIAL:
            built = [build(inside, packages, f"{where}.{key}{place}") for place, inside in _nodes(value)]
            settings[names[key]] = value if not built else built if isinstance(value, list) else built[0]
    return settings


def settings_from(kind: type, config: dict[str, Any], where: str, parts: Mapping[str, Sequence[str]] = MappingProxyType({})) -> Any:
    """A script's frozen dataclass of settings from its config. parts: the keys that are nodes, and the packages that define their
    targets. Raises UserError at the first wrong key or value."""
    check_arguments(kind, config, sorted({package for packages in parts.values() for package in packages}), where)
    built = {name: build(config[name], packages, name) for name, packages in parts.items()}
    try:
        return kind(**config | built)
    except ValueError as error:
        raise UserError(str(error)) from error
