"""The command line and the config that Hydra composes of it, with near names for what is
misspelt."""

import copy
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from config.old_spelling import GONE, MEDMNIST, refuse_old_config, refuse_old_override
from data.folder_layout import reader_for
from runtime.as_typed import PLAIN, hydra_quoted, with_letters_quoted
from runtime.content import canonical
from runtime.errors import UserError, near, one_message, script
from runtime.hydra_private import (
    flags_first,
    parse_command_line,
    parse_overrides,
    set_values,
    split_cells,
)
from runtime.log import log_to_terminal
from runtime.signals import held

# the last word of keys that hold paths, and of those in whose place nothing else can stand
PATHS = {"path", "root", "from", "checkpoint", "source", "reference", "images", "train", "test"}
PLACES = {"path", "root", "out", "directory", "cache"}
CONF = Path(__file__).resolve().parent.parent / "conf"
ADDED = ("experiment", "sweep", "ablation")  # groups that are not among the defaults
# flip: "${images_are:data.sources.celeba.CelebA}" of an experiment holds for these images alone
OmegaConf.register_new_resolver(
    "images_are", lambda *readers, _root_: _root_.data._target_ in readers, replace=True
)


def as_hydra_takes(arguments: Sequence[str]) -> list[str]:
    """The command line that was given, in the order and the quotes that Hydra needs."""
    return flags_first(with_paths_as_given(arguments))


def with_paths_as_given(arguments: Sequence[str]) -> list[str]:
    """A command line in which Hydra takes paths as they are: what names something that exists, and
    in the place of a path what Hydra's grammar makes nothing of; and letters such as ü anywhere."""
    return [with_letters_quoted(_path_as_given(argument)) for argument in arguments]


def _path_as_given(argument: str) -> str:
    key, equals, text = argument.partition("=")
    word = key.rpartition(".")[2].lstrip("+")
    if not equals or word not in PATHS | PLACES or PLAIN.fullmatch(text) or text in ("", "null"):
        return argument
    home = os.path.expanduser(text)
    if found := next(filter(_exists, (text, home)), None):
        return f"{key}={hydra_quoted(found)}"
    return f"{key}={hydra_quoted(home)}" if word in PLACES and _is_no_text(argument) else argument


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a zero byte in it
        return False


def _is_no_text(argument: str) -> bool:
    """Whether it breaks Hydra's grammar, or is a number by it."""
    try:
        [override] = parse_overrides([argument], CONF)
    except HydraException:
        return True
    return not override.is_sweep_override() and isinstance(override.value(), int | float)


def options(group: str) -> list[str]:
    """The names that a config group offers."""
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def groups() -> list[str]:
    return sorted(p.name for p in CONF.iterdir() if p.is_dir() and options(p.name))


@held()
def composed(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """A config by name and overrides, resolved, whether or not Hydra is running. What is chosen is
    composed once in a process; values are then set in a copy, by Hydra's own function: it takes ten
    times as long to compose.

    Raises:
        UserError: with Hydra's word on what is wrong.
    """
    known, ours = groups(), parsed(overrides)
    values = [o for o in ours if _is_value(o, known)]
    chosen = tuple(str(o.input_line) for o in ours if o not in values)
    config = copy.deepcopy(_composed_keys(CONF, config_name, chosen, False))
    _refuse_gone(ours, config)
    try:
        set_values(values, config)
    except HydraException as error:
        raise UserError(f"{' '.join(overrides)}: {error}") from error
    return resolved(config)


def composed_of_then(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The same of lines that are part of a run's name: what is GONE stays in them, unheard."""
    kept = [line for line in overrides if not GONE.match(line)]
    config = composed(config_name, kept)
    if len(kept) == len(overrides) or config["data"]["_target_"] == MEDMNIST:
        return config
    return composed(config_name, overrides)


def _refuse_gone(overrides: Sequence[Override], chosen: Any) -> None:
    """By the reader that is chosen, or that they set."""
    reader = (chosen.get("data") or {}).get("_target_")
    reader = {o.key_or_group: o.value() for o in overrides}.get("data._target_", reader)
    for override in overrides:
        if GONE.match(line := str(override.input_line)):
            refuse_old_override(line, reader)


def _is_value(override: Override, known: Sequence[str]) -> bool:
    """Whether it sets a value, also all those of a group at once, and so changes nothing of which
    files are composed."""
    key = override.key_or_group
    if override.is_sweep_override() or override.package or "/" in key or key.startswith("hydra."):
        return False
    return key not in known or isinstance(override.value(), dict)


@held()
def resolved(config: DictConfig) -> dict[str, Any]:
    """As plain dicts and lists, every interpolation and ??? filled in or refused; 1e4 is 10000, and
    so a whole number."""
    try:
        found: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} must be set: {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise UserError(str(error).strip().replace("\n", "; ")) from error
    refuse_old_config(found)
    return canonical(found)


def check_overrides(config_name: str, arguments: Sequence[str]) -> None:
    """Checks a command line, and the sweep that it asks for.

    Raises:
        UserError: with near names, where it names a group, a choice or a key that is not there.
    """
    ours = task_overrides(config_name, arguments)
    known = groups()
    chosen = [o for o in ours if o.key_or_group in known]
    for override in chosen:
        _check_choice(override)
    keys = [o for o in ours if o.key_or_group not in known and "@" not in (o.input_line or "")]
    cells = split_cells(chosen) if keys else []
    for cell in cells:
        base = composed_keys(config_name, cell)
        try:
            _refuse_gone(keys, base)
            for override in keys:
                _check_key(override, base)
        except UserError as error:
            of_cell = f" (with {' '.join(cell)})" if len(cells) > 1 else ""
            raise UserError(f"{error}{of_cell}") from error
    _check_flags(config_name, arguments, ours)


def _check_flags(config_name: str, arguments: Sequence[str], ours: Sequence[Override]) -> None:
    """Raises UserError for several values without -m, and for a flag that Hydra would end with a
    traceback for."""
    asked = parse_command_line(arguments)
    for override in parsed(asked.overrides):
        if override.key_or_group == "hydra.job.chdir" and override.value() is not False:
            raise UserError(
                f"{override.input_line}: paths are of the folder where the command is given, so "
                "it is not left: leave hydra.job.chdir out. Where runs go is run.root=DIR."
            )
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


@script
def run_script(name: str, main: Callable[[dict[str, Any]], object]) -> None:
    """python NAME.py: checks the command line, composes conf/NAME.yaml with it, and calls main with
    that as plain dicts."""

    @one_message
    def start(config: DictConfig) -> None:
        log_to_terminal()
        with held(False):
            main(resolved(config))

    sys.argv[1:] = as_hydra_takes(sys.argv[1:])
    check_overrides(name, sys.argv[1:])
    with held():
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(start)()


def is_multirun(asked: Namespace) -> bool:
    """Whether Hydra's parsed command line asks for many runs."""
    return asked.multirun or "hydra.mode=MULTIRUN" in asked.overrides


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
        return parse_overrides(with_paths_as_given(overrides), CONF)
    except HydraException as error:
        raise UserError(
            f"{error}\nOverrides look like train.steps=1000 or +experiment=transfer_demo; quote "
            "what has spaces, commas or brackets, twice: 'checkpoint=\"my run\"', "
            "'data.patient=\"(P\\d+)_\"'."
        ) from error


@held()
def composed_keys(
    config_name: str, overrides: Sequence[str], hydra: bool = False
) -> dict[str, Any]:
    """A config that may still lack values; hydra: with Hydra's own settings. Composed once in a
    process, as a command line is checked key by key."""
    found: Any = OmegaConf.to_container(_composed_keys(CONF, config_name, tuple(overrides), hydra))
    return found


@lru_cache
def _composed_keys(
    conf: Path, config_name: str, overrides: tuple[str, ...], hydra: bool
) -> DictConfig:
    running = GlobalHydra.instance().is_initialized()
    try:
        with nullcontext() if running else initialize_config_dir(str(conf), version_base="1.3"):
            return compose(config_name, list(overrides), return_hydra_config=hydra)
    except (HydraException, YAMLError, ValueError) as error:  # ValueError: data=1, which is no name
        raise UserError(f"{' '.join(overrides)}: {error}".removeprefix(": ")) from error


def _values(override: Override) -> list[Any]:
    if override.is_sweep_override():
        return list(map(str, override.sweep_string_iterator()))
    return [override.get_value_element_as_str()]


def _check_choice(override: Override) -> None:
    group = override.key_or_group
    if override.is_delete():
        raise UserError(
            f"~{group}: it cannot be left out; choose one, {group}=NAME of "
            f"{', '.join(options(group))}."
        )
    if isinstance(override.value(), dict):
        return
    values, known = _values(override), options(group)
    for value in values:
        if value not in known:
            own = f" A name of your own for the folder of runs is run.experiment={value}."
            raise UserError(
                f"{group}={value}: there is no such {group}; {near(value, known)}"
                + own * (group == "experiment")
            )
        try:
            # each, as of a sweep only the first cell is composed here
            OmegaConf.load(CONF / group / f"{value}.yaml")
        except YAMLError as error:
            raise UserError(f"{group}={value}: {error}") from error
    if override.is_add() != (group in ADDED):
        raise UserError(
            f"write +{group}={values[0]}, with a plus: {group} is added to the defaults."
            if group in ADDED
            else f"write {group}={values[0]}, without the plus: {group} is among the defaults."
        )


def _check_key(override: Override, base: dict[str, Any]) -> None:
    node: Any = base
    key, parts = override.key_or_group, override.key_or_group.split(".")
    for depth, part in enumerate(parts):
        above = ".".join(parts[:depth])
        if isinstance(node, list):
            if override.is_delete():
                raise UserError(
                    f"~{key}: no element of a list can be left out; give the whole list, "
                    f"{above}=[...]."
                )
            if not part.isdecimal() or int(part) >= len(node):
                raise UserError(
                    f"{key}: {above} is a list, whose {len(node)} elements are named by their "
                    "numbers, from 0 on."
                )
            node = node[int(part)]
        elif not isinstance(node, dict) or (override.is_add() and depth == len(parts) - 1):
            return  # inside a value, which is Hydra's to judge; or new, and judged by the schema
        elif part in node:
            node = node[part]
        else:
            raise _no_such_setting(override, above, part, node)


def _no_such_setting(override: Override, above: str, part: str, node: dict[str, Any]) -> UserError:
    key, here = override.key_or_group, f"{above}.".removeprefix(".")
    if key == "data.path":  # of images that lie in no path
        path = str(override.value())
        given = f"data.path={shlex.quote(path)}"
        return UserError(f"{given}: data={reader_for(path)} {given} is meant, by what is there.")
    known = [f"{here}{k}" for k in node] + [f"+{g}" for g in ADDED if not above]
    message = f"{key}: there is no such setting; {near(here + part, known)}"
    if "_target_" in node:
        message += f" (+{key}= sets what {node['_target_']} has a default for)"
    return UserError(message)
