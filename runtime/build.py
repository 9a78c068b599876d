"""From configuration to objects. The constructor's signature is the schema: keys and types are
checked against it, with the near names in the message, before anything is built.

Configurations also arrive inside checkpoints, which are foreign input: a target must be defined in
a package that the caller names, judged by the module where the object is defined and not by the
path that leads to it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from runtime.errors import UserError, near

T = TypeVar("T")
SPECIAL = {"_target_", "_partial_"}
NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
    dict: "a mapping",
    Any: "a part",
}


class Settings:
    """Base of the dataclasses that a mapping without a target becomes, by its keys."""


def parse(kind: type[T], content: dict[str, Any], packages: Sequence[str], where: str) -> T:
    """A dataclass of settings from a mapping. Its fields are values, Settings (from mappings
    without a target) and parts (from nodes, which are mappings with one).

    Args:
        packages: which may define the targets of the nodes.
        where: of the mapping in its config, for messages; "" for a whole config.
    Raises:
        UserError: at the first wrong key or value.
    """
    check_arguments(kind, content, packages, where)
    return make(kind, where, **_arguments(kind, content, packages, where))


def build(node: dict[str, Any], packages: Sequence[str], where: str, **given: Any) -> Any:
    """Checks and builds a node: the target called with its settings and what the caller gives, or,
    with _partial_, bound to them."""
    factory = bind(node, packages, where, list(given))
    return (
        functools.partial(factory, **given)
        if node.get("_partial_")
        else make(factory, where, **given)
    )


def bind(
    node: dict[str, Any], packages: Sequence[str], where: str, given: Sequence[str] = ()
) -> functools.partial[Any]:
    """Checks a node and binds its target to its settings. given: arguments that the caller adds."""
    check(node, packages, where, given)
    target = resolve(node["_target_"], packages, where)
    return functools.partial(target, **_arguments(target, node, packages, where))


def make(factory: Callable[..., T], where: str, *args: Any, **given: Any) -> T:
    """What a bound part builds. Its own word on its settings, a ValueError, becomes a UserError."""
    try:
        return factory(*args, **given)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}".removeprefix(": ")) from error


def resolve(target: Any, packages: Sequence[str], where: str) -> Any:
    """The class or function that target names, if one of packages defines it."""
    module, _, name = str(target).rpartition(".")
    if _inside(module, packages):
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            raise UserError(f"{where}._target_: there is no {target}.") from None
        if callable(found) and _inside(getattr(found, "__module__", ""), packages):
            return found
    raise UserError(
        f"{where}._target_: {target} is not defined in {' or '.join(packages)}, and nothing "
        "else is built from a config."
    )


def _inside(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def check(
    node: dict[str, Any], packages: Sequence[str], where: str, given: Sequence[str] = ()
) -> None:
    """Compares a node, and those inside it, with the signature of its target."""
    target = resolve(node.get("_target_"), packages, where)
    check_arguments(target, node, packages, where, given)


def check_arguments(
    target: Any,
    node: dict[str, Any],
    packages: Sequence[str],
    where: str,
    given: Sequence[str] = (),
) -> None:
    """The same with the target known. A parameter `from_` is the key `from`."""
    parameters, hints = _schema(target)
    required = {
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    }
    for key, value in node.items():
        if key in SPECIAL:
            continue
        place = f"{where}.{key}".removeprefix(".")
        if key not in parameters or key in given:
            bound_later = required - node.keys() if node.get("_partial_") else set()
            raise UserError(
                f"{place}: no such setting; "
                f"{near(key, parameters.keys() - bound_later - set(given))}"
            )
        _check_value(value, hints.get(key, Any), packages, place)
    missing = [name for name in parameters if name in required - node.keys() - set(given)]
    if missing and not node.get("_partial_"):
        raise UserError(f"{f'{where}.{missing[0]}'.removeprefix('.')} must be set.")


def _check_value(value: Any, hint: Any, packages: Sequence[str], place: str) -> None:
    if nodes := _nodes(value):
        if isinstance(value, list) != _is_sequence(hint):
            found = "a list" if isinstance(value, list) else "one group"
            raise UserError(f"{place} must be {describe(hint)}, and is {found} here: {value}")
        for index, node in nodes:
            check(node, packages, f"{place}{index}")
    elif not fits(value, hint):
        raise UserError(f"{place}={value!r} is not {describe(hint)}.")
    elif record := _record(hint):
        for index, content in _each(value):
            check_arguments(record, content, packages, f"{place}{index}")


@functools.cache
def _schema(target: Any) -> tuple[Mapping[str, inspect.Parameter], Mapping[str, Any]]:
    """The parameters of a class or function and their types, by key."""
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    parameters = inspect.signature(target).parameters
    return (
        {name.rstrip("_"): parameter for name, parameter in parameters.items()},
        {name.rstrip("_"): hint for name, hint in hints.items()},
    )


def _arguments(
    target: Any, node: dict[str, Any], packages: Sequence[str], where: str
) -> dict[str, Any]:
    """A node's settings as arguments of target: what is inside built, keywords such as `from`
    spelled `from_`."""
    parameters, hints = _schema(target)
    return {
        parameters[key].name: _built(value, hints.get(key, Any), packages, f"{where}.{key}")
        for key, value in node.items()
        if key not in SPECIAL
    }


def _built(value: Any, hint: Any, packages: Sequence[str], place: str) -> Any:
    if nodes := _nodes(value):
        parts = [build(node, packages, f"{place}{index}") for index, node in nodes]
    elif (record := _record(hint)) and value is not None:
        parts = [
            make(record, f"{place}{index}", **_arguments(record, content, packages, place))
            for index, content in _each(value)
        ]
    else:
        return value
    return parts if isinstance(value, list) else parts[0]


def _nodes(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """The nodes that a value is or, as a list, holds, with their places in it."""
    found = _each(value)
    return found if found and all(isinstance(v, dict) and "_target_" in v for _, v in found) else []


def _each(value: Any) -> list[tuple[str, Any]]:
    return (
        [(f"[{k}]", v) for k, v in enumerate(value)] if isinstance(value, list) else [("", value)]
    )


def _record(hint: Any) -> Any:
    """The Settings that a type is, or that it is a sequence of."""
    inner = typing.get_args(hint)[0] if _is_sequence(hint) else hint
    return inner if inspect.isclass(inner) and issubclass(inner, Settings) else None


def _is_sequence(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return inspect.isclass(origin) and issubclass(origin, Sequence)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from YAML is of the annotated type. An int is a float; lists are any
    sequence."""
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
    if _is_sequence(hint):
        return isinstance(value, list) and all(fits(v, arguments[0]) for v in value)
    return isinstance(value, dict) and (dict in (hint, origin) or _record(hint) is not None)


def describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if _is_sequence(hint):
        return f"a list in which each is {describe(arguments[0])}"
    if _record(hint) or dict in (hint, origin):
        return NAMES[dict]
    return NAMES.get(hint, f"a {getattr(hint, '__name__', hint)} (a group with _target_)")
