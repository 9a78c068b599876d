"""How a process ends that was asked to stop: so that Slurm, through submitit, requeues it."""

import os
import signal
import sys
from typing import NoReturn

from runtime.signals import PREEMPTED


def is_job() -> bool:
    """Whether submitit started this process, on a cluster, and will start it again where it is
    requeued."""
    return "SUBMITIT_EXECUTOR" in os.environ


def leave(number: signal.Signals) -> NoReturn:
    """Ends a process that was asked to stop and has saved. A job of submitit hands the signal on to
    submitit's handler: after its own signal (SIGUSR2: the time is up, or the place is needed) that
    one requeues the job and exits; after SIGTERM it does nothing, and the job waits to be killed,
    because Slurm takes one that leaves by itself for completed and does not requeue it."""
    handler = signal.getsignal(number)
    if is_job() and callable(handler):
        handler(number, None)
        while True:
            signal.pause()
    sys.exit(PREEMPTED)
