"""What is private of Hydra (1.3) and patched of submitit (1.5): here and nowhere else.
requirements.txt pins their ranges, and tests/runtime/test_hydra_private.py holds what each name
does."""

import contextlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig


def parse_command_line(arguments: Sequence[str]) -> Namespace:
    """Hydra's own flags, and the overrides before, between and after them."""
    return get_args_parser().parse_intermixed_args(list(arguments))


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The same command line as Hydra takes it, which wants no flag between overrides."""
    overrides = parse_command_line(arguments).overrides
    return [word for word in arguments if word not in overrides] + overrides


def parse_overrides(lines: Sequence[str], conf: Path) -> list[Override]:
    """By Hydra's grammar, with the choices of conf for transfer=glob(*). Raises HydraException."""
    loader = ConfigLoaderImpl(create_config_search_path(str(conf)))
    return OverridesParser.create(loader).parse_overrides(list(lines))


def set_values(values: list[Override], config: DictConfig) -> None:
    """In place, as at the end of Hydra's composition. Raises HydraException."""
    ConfigLoaderImpl._apply_overrides_to_config(values, config)


def split_cells(overrides: list[Override]) -> list[list[str]]:
    """The overrides of each cell of a sweep, in the order in which Hydra's sweeper runs them."""
    return BasicSweeper.split_arguments(overrides, None)[0]


def runs_here(launcher: Launcher) -> bool:
    """Whether it runs cells in this process, one after the other. By its name, as Hydra imports
    plugins once more, under the same names."""
    return type(launcher).__module__ == BasicLauncher.__module__


def replaced_job_results(
    instead: Callable[[Callable[[Any], list[Any]], Any], list[Any]],
) -> contextlib.AbstractContextManager:
    """submitit's Job.results(job) is instead(results, job) while inside, where results is
    submitit's own."""
    from submitit import Job

    results = Job.results
    return mock.patch.object(Job, "results", lambda job: instead(results, job))


def replaced_submission(
    instead: Callable[[Callable[[Any, str], Any], Any, str], Any],
) -> contextlib.AbstractContextManager:
    """submitit's executor._submit_command(command), which calls sbatch, is instead(submit,
    executor, command) while inside, where submit is submitit's own."""
    from submitit.core.core import PicklingExecutor

    submit = PicklingExecutor._submit_command
    return mock.patch.object(
        PicklingExecutor, "_submit_command", lambda self, command: instead(submit, self, command)
    )
