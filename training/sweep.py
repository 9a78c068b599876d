"""A sweep: one command, many runs. Hydra composes and launches the cells; here is what it leaves
out: a check before the first of them, a cell that fails alone, progress, a table at the end. The
cells' runs resume and are skipped as those of single commands are (training.resume)."""

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from config.overrides import CONF, composed, composed_keys, is_multirun, task_overrides
from config.run_config import RunConfig
from runtime.as_typed import hydra_quoted
from runtime.content import sha256_of
from runtime.device import free_memory
from runtime.errors import Busy, UserError, message_of
from runtime.files import locked, write_json
from runtime.hydra_private import parse_command_line, split_cells
from runtime.log import log_to_terminal
from runtime.requeue import is_job
from runtime.signals import Preempted, told
from training.sweep_jobs import NotSubmitted, check_slurm, jobs_watched
from training.sweep_records import SWEEP, Sweep, read_sweep

log = logging.getLogger("sweep")
OF_MANY_RUNS = ("+sweep=", "+ablation=", "hydra/launcher=", "budget=", "study.")
ELSEWHERE = "running elsewhere"
LOCK = ".lock"


# in the process that was started


@contextlib.contextmanager
def sweeping(config_name: str, argv: list[str]) -> Iterator[None]:
    """Around Hydra's main, for a command line that may ask for a sweep. Raises UserError before
    anything runs; exits with 1 where cells failed, with 75 or 130 where a signal stopped it."""
    asked = parse_command_line(argv[1:])
    if not is_sweep(config_name, asked):
        yield
        return
    given = argv[1:]
    sweep, elsewhere, grows = plan(config_name, given)
    # -m may come after them
    last = max((k for k, word in enumerate(argv) if word in asked.overrides), default=len(argv) - 1)
    # how cells find it
    argv.insert(last + 1, f"hydra.sweep.dir={hydra_quoted(str(sweep.folder))}")
    # of jobs
    here, before = str(CONF.parent), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{here}{os.pathsep}{before}" if before else here
    log_to_terminal()
    for launcher in ("hydra", "hydra_plugins"):
        logging.getLogger(launcher).setLevel(logging.WARNING)
    busy = f"{sweep.folder}: this sweep is being run by another process: wait for it, or stop it."
    around = growing(sweep) if grows else of_these(sweep, given, elsewhere)
    with locked(sweep.folder / LOCK, busy), around:
        yield


@contextlib.contextmanager
def of_these(sweep: Sweep, given: Sequence[str], elsewhere: bool) -> Iterator[None]:
    """Around the launch of a sweep whose cells are known."""
    begin(sweep, given)
    try:
        with jobs_watched(sweep) if elsewhere else contextlib.nullcontext():
            yield
    except NotSubmitted as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt as stop:
        why, code = told(stop)
        on = "its jobs go on without this process" if elsewhere else "the same command continues"
        log.info(f"{why}; {on}")
        show_end(sweep)
        sys.exit(code)
    except BaseException:
        show_end(sweep)
        raise
    if show_end(sweep):
        sys.exit(1)


@contextlib.contextmanager
def growing(sweep: Sweep) -> Iterator[None]:
    """Around a study, which says round by round which cells there are, and goes on with those that
    it has."""
    log.info(f"study: {sweep.folder.parent}")
    try:
        yield
    except NotSubmitted as error:
        raise UserError(str(error)) from error
    finally:
        if not (sweep.folder / SWEEP).exists():  # refused before its first cell
            (sweep.folder / LOCK).unlink()
            with contextlib.suppress(OSError):  # there is more, such as a plan
                sweep.folder.rmdir()
                sweep.folder.parent.rmdir()


def begin(sweep: Sweep, arguments: Sequence[str]) -> None:
    """Writes which cells there are; how they ended before is forgotten."""
    for record in sweep.folder.glob("[0-9]*.json"):
        record.unlink()
    write_json(sweep.folder / SWEEP, {"command": " ".join(arguments), "cells": list(sweep.cells)})
    log.info(f"sweep: {len(sweep.cells)} cells, {sweep.folder}")


def show_end(sweep: Sweep) -> bool:
    """The table, and whether a cell failed."""
    print(f"\n{sweep.table()}", flush=True)
    return report_failures(sweep)


def is_sweep(config_name: str, asked) -> bool:
    """Whether this runs as a sweep. Raises UserError for one that is asked for without -m, which
    Hydra would ignore."""
    shows = asked.cfg or asked.info
    if asked.multirun and shows:
        raise UserError(
            "--cfg and --info show one run: leave -m out, and give one value of each setting."
        )
    if shows or asked.help or asked.hydra_help or asked.shell_completion:
        return False
    if is_multirun(asked):
        return True
    for override in asked.overrides:
        if override.startswith(OF_MANY_RUNS):
            raise UserError(
                f"{override} is for many runs: add -m, python {config_name}.py -m "
                f"{' '.join(asked.overrides)}"
            )
    return False


def plan(config_name: str, arguments: Sequence[str]) -> tuple[Sweep, bool, bool]:
    """The sweep, nothing of it written yet.

    Returns:
        The sweep, whether its cells run in other processes, and whether it is a study, which says
        round by round which there are.
    Raises:
        UserError: where the command line is no sweep, or Slurm is asked for and is not there.
    """
    of_hydra = [o for o in arguments if o.lstrip("+~").startswith("hydra")]
    launcher = next(
        (o.split("=")[1] for o in reversed(of_hydra) if o.startswith("hydra/launcher=")), "basic"
    )
    if launcher == "slurm":
        check_slurm()
    composed_keys(config_name, of_hydra, hydra=True)  # raises where they are wrong
    overrides = task_overrides(config_name, arguments)
    cells = split_cells(overrides)
    axes = [o for o in overrides if o.is_sweep_override()]
    if "run.directory" in [o.key_or_group for o in overrides if o not in axes]:
        raise UserError(
            "run.directory is that of one run: leave it out of a sweep, or give run.root."
        )
    if "train.steps" in [o.get_key_element() for o in axes]:
        raise UserError(
            "train.steps is no axis of a sweep: a larger one continues the same run, so that its "
            "cells would be one. Take the largest; metrics.jsonl of its run has the held-out loss "
            "after each run.checkpoint_every steps."
        )
    first = composed(config_name, cells[0])
    if "study" in first:
        return study_of(first, cells, [str(o.input_line) for o in axes]), launcher != "basic", True
    name = next(
        (o.get_value_element_as_str() for o in overrides if o.key_or_group == "sweep"), "grid"
    )
    below = Path(first["run"]["root"], RunConfig(first).experiment, "sweeps")
    folder = below / f"{name}-{sha256_of(cells)[:8]}"
    names = [" ".join(cell) or name for cell in split_cells(axes)]
    return Sweep(folder, names), launcher != "basic", False


def study_of(config: dict[str, Any], cells: Sequence[list[str]], axes: Sequence[str]) -> Sweep:
    """The study that a command line asks for, in runs/NAME-HASH/study, HASH of that line without
    section run, which changes no number. Raises UserError for several values of a setting."""
    if axes:
        raise UserError(
            f"{' '.join(axes)}: this is a study, which chooses its runs itself: give one value of "
            "each setting. What it compares stands in section study (--help)."
        )
    line = [override for override in cells[0] if not override.startswith("run.")]
    runs = Path(config["run"]["root"], f"{RunConfig(config).experiment}-{sha256_of(line)[:8]}")
    return Sweep(runs / "study", [])


def report_failures(sweep: Sweep) -> bool:
    """Names the cells that failed, each with its message. Whether there are any."""
    records = sweep.records()
    count = len(records)
    ended = [(name, r) for name, r in zip(sweep.cells, records, strict=True) if r]
    if busy := sum(r["status"] == ELSEWHERE for _, r in ended):
        print(f"{busy} of {count} cells are {ELSEWHERE}, by another process.", file=sys.stderr)
    failed = [f"\n  {name}: {r['message']}" for name, r in ended if r["status"] == "failed"]
    if failed:
        print(f"error: {len(failed)} of {count} cells failed:{''.join(failed)}", file=sys.stderr)
    if left := count - len(ended):
        print(
            f"{left} of {count} cells are not finished; the same command continues.",
            file=sys.stderr,
        )
    return bool(failed)


# in the process of a cell


def cell(train: Callable[[], Path]) -> None:
    """Trains and, as a cell of a sweep, notes how that ended: whatever is wrong with this one, the
    others go on. A stop signal (Preempted, KeyboardInterrupt) is for all of them."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        train()
        return
    sweep, number, start = read_sweep(Path(hydra.sweep.dir)), hydra.job.num, time.monotonic()
    try:
        record: dict[str, Any] = {"status": "finished", "run": str(train())}
    except Preempted:
        raise
    except Busy as error:
        record = {"status": ELSEWHERE, "message": str(error)}
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and is_job():
            raise  # so submitit leaves a job that it has requeued
        message = message_of(error)
        if message is None:
            traceback.print_exc()
        record = {"status": "failed", "message": message or f"{type(error).__name__}: {error}"}
    free_memory()
    record["seconds"] = time.monotonic() - start
    write_json(sweep.folder / f"{number}.json", record)
    log.info(sweep.line(number, record, number + 1))
