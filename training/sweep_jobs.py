"""Cells that are jobs of Slurm, in processes of their own."""

import contextlib
import io
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from runtime.errors import UserError
from runtime.files import write_json
from runtime.hydra_private import replaced_job_results, replaced_submission
from runtime.signals import held
from training.sweep_records import Sweep

log = logging.getLogger("sweep")


class NotSubmitted(BaseException):
    """Slurm refused. Of what is an Exception Hydra would show the traceback."""


def check_slurm() -> None:
    """Raises UserError where jobs cannot be sent from here."""
    try:
        metadata.version("hydra-submitit-launcher")
    except metadata.PackageNotFoundError as error:
        raise UserError(
            "hydra/launcher=slurm needs two packages: pip install hydra-submitit-launcher submitit"
        ) from error
    if shutil.which("srun") is None:
        raise UserError(
            "hydra/launcher=slurm: there is no Slurm here (no srun on PATH). Start the sweep on a "
            "login node of the cluster, or without hydra/launcher=slurm: its cells then run here, "
            "one after the other."
        )


@contextlib.contextmanager
def told_of_cells(sweep: Sweep, numbers: Sequence[int] | None = None) -> Iterator[None]:
    """Tells of all cells, or of these, as they end in other processes, while inside."""
    end = threading.Event()

    def watch() -> None:
        left = list(range(len(sweep.cells)) if numbers is None else numbers)
        last = False
        while not last:
            last = end.wait(1)
            for n in list(left):
                if record := sweep.record(n):
                    left.remove(n)
                    log.info(sweep.line(n, record, len(sweep.cells) - len(left)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextlib.contextmanager
def jobs_watched(sweep: Sweep, numbers: Sequence[int] | None = None) -> Iterator[None]:
    """Tells of cells as they end, of all or of these, whose jobs are launched in their order. A job
    that dies (killed for memory, cancelled) is a cell that failed: submitit raises for the first of
    them, and Hydra's launcher, which asks for the results in the order of the cells, would then
    wait for no other."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    def sent(submit: Callable[[Any, str], Any], executor: Any, command: str) -> Any:
        try:
            # the same, once more
            with held(False), contextlib.redirect_stderr(io.StringIO()):
                return submit(executor, command)
        except (FailedJobError, OSError) as error:
            raise NotSubmitted(
                f"hydra/launcher=slurm: Slurm did not take the jobs: {str(error).strip()}\nThe "
                "partition and the rest are hydra.launcher.partition=NAME, "
                "hydra.launcher.account=NAME and so on; sinfo shows the partitions, and whether "
                "Slurm answers."
            ) from error

    watched = range(len(sweep.cells)) if numbers is None else numbers
    in_turn = iter(watched)

    def noted(results: Callable[[Any], list[JobReturn]], job: Any) -> list[JobReturn]:
        number = next(in_turn)
        try:
            with held(False):
                return results(job)
        except (UncompletedJobError, FailedJobError) as error:
            if sweep.record(number) is None:
                # of an UncompletedJobError; the other ends as a traceback does
                state = re.search(r"state: ([^)]*)", str(error))
                why = state.group(1) if state else str(error).strip().splitlines()[-1]
                message = (
                    f"its job {job.job_id} ended without a result, {why}. What it printed: "
                    f"{job.paths.stdout}"
                )
                write_json(
                    sweep.folder / f"{number}.json",
                    {"status": "failed", "message": message, "seconds": 0},
                )
            return [JobReturn(status=JobStatus.COMPLETED)]

    with told_of_cells(sweep, watched), replaced_job_results(noted), replaced_submission(sent):
        yield
