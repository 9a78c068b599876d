"""The command line and the config that Hydra composes of it, with near names for what is
misspelt."""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from config.old_spelling import refuse_old_config, refuse_old_override
from runtime.errors import UserError, near
from runtime.hydra_private import parse_command_line, parse_overrides, set_values

CONF = Path(__file__).resolve().parent.parent / "conf"
ADDED = ("experiment", "sweep")  # groups that are not among the defaults


def options(group: str) -> list[str]:
    """The names that a config group offers."""
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def groups() -> list[str]:
    return sorted(p.name for p in CONF.iterdir() if p.is_dir() and options(p.name))


def composed(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """A config by name and overrides, resolved, whether or not Hydra is running. What is chosen is
    composed once in a process; values are then set in a copy, by Hydra's own function: it takes ten
    times as long to compose. Raises UserError with Hydra's word on it."""
    values: list[Override] = []
    chosen: list[Override] = []
    known = groups()
    for override in parsed(overrides):
        (values if _is_value(override, known) else chosen).append(override)
    config = copy.deepcopy(
        _composed_keys(CONF, config_name, tuple(str(o.input_line) for o in chosen), False)
    )
    try:
        set_values(values, config)
    except HydraException as error:
        raise UserError(f"{' '.join(overrides)}: {error}") from error
    return resolved(config)


def _is_value(override: Override, known: Sequence[str]) -> bool:
    """Whether it sets a value, also all those of a group at once, and so changes nothing of which
    files are composed."""
    key = override.key_or_group
    if (
        override.is_sweep_override()
        or override.package
        or "/" in key
        or key.split(".")[0] == "hydra"
    ):
        return False
    return key not in known or isinstance(override.value(), dict)


def resolved(config: DictConfig) -> dict[str, Any]:
    """As plain dicts and lists, every interpolation and ??? filled in or refused."""
    try:
        found = cast(
            dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        )
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} must be set: {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise UserError(str(error).strip().replace("\n", "; ")) from error
    refuse_old_config(found)
    return found


def check_overrides(config_name: str, arguments: Sequence[str]) -> None:
    """Raises UserError, with near names, for a command line that names a group, a choice or a key
    that is not there, itself or in the sweep that it asks for."""
    ours = task_overrides(config_name, arguments)
    known = groups()
    chosen = [o for o in ours if o.key_or_group in known]
    for override in chosen:
        _check_choice(override)
    keys = [o for o in ours if o.key_or_group not in known and "@" not in (o.input_line or "")]
    base = _keys_with(config_name, chosen)  # of a sweep, with the first of its choices
    for override in keys:
        _check_key(override, base)
    for choice in chosen:
        inside = [
            o
            for o in keys
            if o.key_or_group.startswith(f"{choice.package or choice.key_or_group}.")
        ]
        for value in _values(choice)[1:] if inside else []:
            base = _keys_with(config_name, chosen, {_choice(choice): value})
            for override in inside:
                try:
                    _check_key(override, base)
                except UserError as error:
                    raise UserError(f"{error} (with {choice.key_or_group}={value})") from error
    _check_flags(config_name, arguments, ours)


def _check_flags(config_name: str, arguments: Sequence[str], ours: Sequence[Override]) -> None:
    """Raises UserError for several values without -m, and for a flag that Hydra would end with a
    traceback for."""
    asked = parse_command_line(arguments)
    if asked.resolve and not (asked.cfg or asked.help):
        raise UserError(
            "--resolve belongs to --cfg: --cfg job --resolve shows the config with every "
            "reference filled in."
        )
    if is_multirun(asked):
        return
    for override in ours:
        if override.is_sweep_override() and override.input_line in asked.overrides:
            raise UserError(
                f"{override.input_line}: several values are several runs: add -m, python "
                f"{config_name}.py -m .... A list is written [a,b], a text with a comma in two "
                "pairs of quotes."
            )


def is_multirun(asked: Namespace) -> bool:
    """Whether Hydra's parsed command line asks for many runs."""
    return asked.multirun or "hydra.mode=MULTIRUN" in asked.overrides


def _keys_with(
    config_name: str, chosen: Sequence[Override], other: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Which keys there are with the first value of each choice, or with another."""
    return composed_keys(
        config_name,
        [
            f"{'+' if o.is_add() else ''}{_choice(o)}={other.get(_choice(o), _values(o)[0])}"
            for o in chosen
        ],
    )


def _choice(override: Override) -> str:
    """What is chosen: a group, or a group at another place, features@perceptual."""
    return override.key_or_group + (f"@{override.package}" if override.package else "")


def task_overrides(config_name: str, arguments: Sequence[str]) -> list[Override]:
    """What +sweep=NAME varies and then what the command line sets, without Hydra's own settings; of
    the same key the later counts, as it does in Hydra's sweeper."""
    overrides = parsed(parse_command_line(arguments).overrides)
    ours = [o for o in overrides if o.key_or_group.split("/")[0].split(".")[0] != "hydra"]
    sweeps = [o for o in ours if o.key_or_group == "sweep"]
    for override in sweeps:
        _check_choice(override)
        if override.is_sweep_override():
            raise UserError(f"+sweep={','.join(_values(override))}: one sweep at a time.")
    about = [
        str(o.input_line)
        for o in overrides
        if o in sweeps or "hydra.sweeper.params" in o.key_or_group
    ]
    params = (
        composed_keys(config_name, about, hydra=True)["hydra"]["sweeper"]["params"]
        if about
        else None
    )
    varied = parsed([f"{key}={value}" for key, value in (params or {}).items()])
    return list({o.get_key_element(): o for o in [*varied, *ours]}.values())


def parsed(overrides: Sequence[str]) -> list[Override]:
    for line in overrides:
        refuse_old_override(line)
    try:
        return parse_overrides(overrides, CONF)
    except HydraException as error:
        raise UserError(
            f"{error}\nOverrides look like train.steps=1000 or +experiment=transfer_demo; quote "
            "what has spaces, commas or brackets, twice: 'checkpoint=\"my run\"', "
            "'data.patient=\"(P\\d+)_\"'."
        ) from error


def composed_keys(
    config_name: str, overrides: Sequence[str], hydra: bool = False
) -> dict[str, Any]:
    """A config that may still lack values; hydra: with Hydra's own settings. Composed once in a
    process, as a command line is checked key by key."""
    return cast(
        dict[str, Any],
        OmegaConf.to_container(_composed_keys(CONF, config_name, tuple(overrides), hydra)),
    )


@lru_cache
def _composed_keys(
    conf: Path, config_name: str, overrides: tuple[str, ...], hydra: bool
) -> DictConfig:
    try:
        if GlobalHydra.instance().is_initialized():
            return compose(config_name, list(overrides), return_hydra_config=hydra)
        with initialize_config_dir(str(conf), version_base="1.3"):
            return compose(config_name, list(overrides), return_hydra_config=hydra)
    except (HydraException, YAMLError, ValueError) as error:  # ValueError: data=1, which is no name
        raise UserError(f"{' '.join(overrides)}: {error}".removeprefix(": ")) from error


def _values(override: Override) -> list[Any]:
    return (
        [str(v) for v in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [override.get_value_element_as_str()]
    )


def _check_choice(override: Override) -> None:
    group = override.key_or_group
    if override.is_delete():
        raise UserError(
            f"~{group}: it cannot be left out; choose one, {group}=NAME of "
            f"{', '.join(options(group))}."
        )
    if isinstance(override.value(), dict):
        return
    in_defaults = group not in ADDED
    if not in_defaults and not override.is_add():
        raise UserError(
            f"write +{group}={_values(override)[0]}, with a plus: {group} is added to the defaults."
        )
    if in_defaults and override.is_add():
        raise UserError(
            f"write {group}={_values(override)[0]}, without the plus: {group} is among the "
            "defaults."
        )
    for value in _values(override):
        if value not in options(group):
            raise UserError(
                f"{group}={value}: there is no such {group}; {near(value, options(group))}"
            )
        try:
            # each, as of a sweep only the first cell is composed here
            OmegaConf.load(CONF / group / f"{value}.yaml")
        except YAMLError as error:
            raise UserError(f"{group}={value}: {error}") from error


def _check_key(override: Override, base: dict[str, Any]) -> None:
    node: Any = base
    parts = override.key_or_group.split(".")
    for depth, part in enumerate(parts):
        if override.is_add() and depth == len(parts) - 1 and isinstance(node, dict):
            return  # new keys are judged by the schema
        if isinstance(node, list):
            if override.is_delete():
                raise UserError(
                    f"~{override.key_or_group}: no element of a list can be left out; give the "
                    f"whole list, {'.'.join(parts[:depth])}=[...]."
                )
            if not part.isdecimal() or int(part) >= len(node):
                raise UserError(
                    f"{override.key_or_group}: {'.'.join(parts[:depth])} is a list, whose "
                    f"{len(node)} elements are named by their numbers, from 0 on."
                )
            node = node[int(part)]
            continue
        if not isinstance(node, dict):
            return  # inside a value: Hydra's to judge
        if part not in node:
            known = [".".join([*parts[:depth], str(k)]) for k in node] + (
                [f"+{g}" for g in ADDED] if depth == 0 else []
            )
            raise UserError(
                f"{override.key_or_group}: there is no such setting; "
                f"{near('.'.join(parts[: depth + 1]), known)}"
            )
        node = node[part]
