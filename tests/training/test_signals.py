"""Asked to stop by a signal, a run saves what it did, leaves with 75, and continues to the bits of
a run that was not asked."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from runtime.checkpoint import find
from runtime.requeue import leave
from runtime.signals import PREEMPTED, Preempted, StopRequest
from tests.helpers import runs

LONGER = ["train.steps=24", "run.checkpoint_every=20"]
# seconds, on a busy machine; the evaluation or the sampling that is cut short would take a minute
SOON = 5


def stopped(root: Path, arguments, at: str) -> Path:
    """The directory of a run that got a signal at an operation on files and obeyed."""
    code, text = runs.train(root, arguments, at)
    assert code == PREEMPTED, text
    return runs.directory_of(root)


def stop(run: runs.Launched, number: signal.Signals) -> tuple[str, float]:
    """Sends a signal to a run, which must obey. What it printed, and the seconds that it took."""
    os.kill(run.process.pid, number)
    start = time.monotonic()
    code, text = run.wait()
    assert code == PREEMPTED, text
    assert f"stopped by {number.name}; everything is saved" in text and "Traceback" not in text
    return text, time.monotonic() - start


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGUSR1,
        *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGINT, signal.SIGUSR2)),
    ],
)
def test_stopped_at_a_random_moment(undisturbed, tmp_path, number):
    run = runs.launch(tmp_path, LONGER)
    run.until(r"0/24")
    time.sleep(random.Random(number.name).uniform(0, 0.3))
    stop(run, number)
    directory = runs.directory_of(tmp_path)
    reached = runs.steps_of(directory)[-1]
    assert 0 < reached < 24
    # no step was dropped
    assert [row["step"] for row in runs.rows(directory) if "loss" in row][-1:] in (
        [],
        [reached // 3 * 3],
    )
    code, text = runs.train(tmp_path, LONGER)
    assert code == 0 and f"resuming at step {reached}:" in text
    runs.assert_same_run(directory, undisturbed(*LONGER), 24)


def test_the_step_that_was_reached_is_saved(undisturbed, tmp_path):
    row_6 = (
        runs.number_of(runs.operations(undisturbed().parents[2]), r"fsync checkpoints/\.step_4") + 3
    )
    directory = stopped(tmp_path, [], f"{row_6}=USR1")
    assert runs.rows(directory)[-1]["step"] == 6
    assert runs.steps_of(directory) == [4, 6]
    assert not find(directory).progress.pending
    runs.assert_same_run(runs.finish(tmp_path), undisturbed())


def test_stopped_while_a_strategy_makes_what_it_needs(undisturbed, tmp_path):
    """Before the first step, too: exit code 75, and what the cache has so far is whole."""
    run = runs.launch(
        tmp_path,
        [
            f"source.from={undisturbed()}",
            "transfer=dreambooth",
            "transfer.replay.images.n=100000",
            "transfer.replay.images.batch_size=1",
        ],
    )
    run.until("source weights")
    while not list(tmp_path.glob("cache/generated/*/00000001.npy")):
        time.sleep(0.01)
    _, seconds = stop(run, signal.SIGTERM)
    assert seconds < SOON
    assert not list(tmp_path.rglob("cache/generated/*/.0*"))


def test_stopped_while_saving(undisturbed, tmp_path):
    number = runs.number_of(runs.operations(undisturbed().parents[2]), r"write \.step_8/ema")
    directory = stopped(tmp_path, [], f"{number}=TERM")
    assert runs.steps_of(directory) == [4, 8]
    runs.assert_same_run(runs.finish(tmp_path), undisturbed())


def test_stopped_in_an_evaluation_and_again_when_it_is_made_up_for(undisturbed, tmp_path):
    long = ["run.held_out_draws=1000000"]
    for attempt, marker in enumerate([r"3/12", r"resuming at step 4:[\s\S]* 4/12"]):
        run = runs.launch(tmp_path, long)
        run.until(marker)
        time.sleep(1.5)  # it is far into the evaluation
        _, seconds = stop(run, signal.SIGTERM)
        assert seconds < SOON
        saved = find(runs.directory_of(tmp_path))
        assert saved.step == 4 and saved.progress.pending, attempt
        assert not any("validation/loss" in row for row in runs.rows(runs.directory_of(tmp_path)))
    runs.assert_same_run(runs.finish(tmp_path), undisturbed())


def test_stopped_while_sampling(undisturbed, tmp_path):
    run = runs.launch(tmp_path, ["run.samples=1000", "sampler.steps=1000"])
    run.until("step 8: held-out loss")
    _, seconds = stop(run, signal.SIGUSR1)
    assert seconds < SOON
    directory = runs.directory_of(tmp_path)
    saved = find(directory)
    assert saved.step == 8 and saved.progress.pending
    assert not list((directory / "samples").iterdir())
    runs.assert_same_run(runs.finish(tmp_path), undisturbed())


def test_stopped_in_the_evaluation_that_ends_the_run(undisturbed, tmp_path):
    """All steps are done, but the run is not finished."""
    number = (
        runs.number_of(runs.operations(undisturbed().parents[2]), r"write samples/.*12.png") - 2
    )
    directory = stopped(tmp_path, [], f"{number}=INT")
    assert runs.steps_of(directory)[-1] == 12 and find(directory).progress.pending
    code, text = runs.train(tmp_path)
    assert code == 0 and "resuming at step 12" in text
    runs.assert_same_run(directory, undisturbed())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_request_is_noted_once_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopRequest() as request:
        request.check()
        os.kill(os.getpid(), number)
        assert request.received == number
        with pytest.raises(Preempted, match=number.name):
            request.check()
        assert signal.getsignal(number) == before  # a second one acts at once
    assert signal.getsignal(number) == before


def test_a_second_interrupt_acts_at_once():
    # a shell's background jobs, as this may be one, ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupted_twice()
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted_twice() -> None:
    with StopRequest():
        # os.kill may reach another thread, and two at once would be one
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# leaving


@pytest.fixture
def handed(monkeypatch):
    """The signals that reach the handler that stood before StopRequest, as submitit's does in its
    jobs."""
    received = []
    before = {
        s: signal.signal(s, lambda number, frame: received.append(number))
        for s in (signal.SIGTERM, signal.SIGUSR2)
    }
    monkeypatch.setattr(
        signal, "pause", lambda: (_ for _ in ()).throw(TimeoutError("waits to be killed"))
    )
    yield received
    for s, handler in before.items():
        signal.signal(s, handler)


def preempted(number: signal.Signals) -> Preempted:
    with pytest.raises(Preempted) as raised, StopRequest() as request:
        signal.raise_signal(number)
        request.check()
    return raised.value


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_process_of_its_own_leaves_with_75(handed, monkeypatch, number):
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    with pytest.raises(SystemExit) as left:
        leave(preempted(number).number)
    assert left.value.code == PREEMPTED and handed == []


def test_a_job_waits_to_be_killed_after_sigterm(handed, monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    stop = preempted(signal.SIGTERM)
    assert handed == []  # not before everything is saved
    with pytest.raises(TimeoutError, match="waits to be killed"):
        leave(stop.number)
    assert handed == [signal.SIGTERM]


def test_submitits_own_signal_goes_on_to_it_which_requeues_and_exits(handed, monkeypatch):
    def requeue(number, frame):
        handed.append("requeued")
        raise SystemExit(-1)

    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    signal.signal(signal.SIGUSR2, requeue)
    with pytest.raises(SystemExit) as left:
        leave(preempted(signal.SIGUSR2).number)
    assert handed == ["requeued"] and left.value.code == -1
