"""From configuration to objects. The constructor's signature is the schema: keys and types are
checked against it, with the near names in the message, before it is called.

Configurations also arrive inside checkpoints, which are foreign input: a target must be defined in
a package that the caller names, judged by the module where the object is defined and not by the
path that leads to it.
"""

import dataclasses
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
    return make(kind, where, **check_arguments(kind, content, packages, where))


def build(node: dict[str, Any], packages: Sequence[str], where: str, **given: Any) -> Any:
    """Checks and builds a node: the target called with its settings and what the caller gives, or,
    with _partial_, bound to them.

    Raises:
        UserError: at the first wrong key or value, or where the target refuses its settings.
    """
    factory = bind(node, packages, where, list(given))
    if node.get("_partial_"):
        return functools.partial(factory, **given)
    return make(factory, where, **given)


def bind(
    node: dict[str, Any], packages: Sequence[str], where: str, given: Sequence[str] = ()
) -> functools.partial[Any]:
    """Checks a node and binds its target to its settings. given: arguments that the caller adds."""
    target = resolve(node.get("_target_"), packages, where)
    return functools.partial(target, **check_arguments(target, node, packages, where, given))


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


def check_arguments(
    target: Any,
    node: dict[str, Any],
    packages: Sequence[str],
    where: str,
    given: Sequence[str] = (),
) -> dict[str, Any]:
    """A node's settings as arguments of target, what is inside built, after a comparison with its
    signature. A parameter `from_` is the key `from`.

    Args:
        given: arguments that the caller adds, so that no setting may have their names.
    Raises:
        UserError: at the first wrong key or value.
    """
    parameters, hints = _schema(target)
    partial, arguments = node.get("_partial_"), {}
    lacking = [
        name
        for name, p in parameters.items()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and name not in {*node, *given}
    ]
    for key, value in node.items():
        if key in SPECIAL:
            continue
        place = f"{where}.{key}".removeprefix(".")
        if key not in parameters or key in given:
            known = parameters.keys() - {*given, *(lacking if partial else [])}
            raise UserError(f"{place}: no such setting; {near(key, known)}")
        name = parameters[key].name
        arguments[name] = _built(value, hints.get(name, Any), packages, place)
    if lacking and not partial:
        raise UserError(f"{where}.{lacking[0]}".removeprefix(".") + " must be set.")
    return arguments


@functools.cache
def _schema(target: Any) -> tuple[Mapping[str, inspect.Parameter], Mapping[str, Any]]:
    """The parameters of a class or function, by key, and their types, by name."""
    own_init = inspect.isclass(target) and not dataclasses.is_dataclass(target)
    hints = typing.get_type_hints(target.__init__ if own_init else target)
    parameters = inspect.signature(target).parameters
    return {name.rstrip("_"): parameter for name, parameter in parameters.items()}, hints


def _built(value: Any, hint: Any, packages: Sequence[str], place: str) -> Any:
    """A value of this type as it is, the part that a node says, the record that a mapping says; of
    a list, those of its elements."""
    listed = isinstance(value, list)
    each = {f"{place}[{k}]": v for k, v in enumerate(value)} if listed else {place: value}
    if each and all(isinstance(v, dict) and "_target_" in v for v in each.values()):
        if listed != _is_sequence(hint):
            found = "a list" if listed else "one group"
            raise UserError(f"{place} must be {describe(hint)}, and is {found} here: {value}")
        parts = [build(node, packages, where) for where, node in each.items()]
    elif not fits(value, hint):
        raise UserError(f"{place}={value!r} is not {describe(hint)}.")
    elif record := _record(hint):
        parts = [parse(record, content, packages, where) for where, content in each.items()]
    else:
        return value
    return parts if listed else parts[0]


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
    if hint is float:
        return type(value) in (int, float)
    if hint in (bool, int, str, type(None)):
        return type(value) is hint
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
