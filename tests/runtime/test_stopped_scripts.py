"""A script that is asked to stop, at any moment of it: one line, and 75 or 130."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.errors import script
from runtime.signals import INTERRUPTED, PREEMPTED, Stopped, held, stoppable
from tests.helpers import ROOT

SCRIPTS = ["train", "sample", "evaluate", "export", "report"]
SAID = "; what was finished stays, and the same command continues\n"
# before torch, which the script is importing when it gets the signal
SLOW_TORCH = (
    "import pathlib, time\n"
    "pathlib.Path({here!r}).touch()\n"
    "try:\n"
    "    time.sleep(60)\n"
    "except BaseException as error:\n"  # as some packages have it around imports
    "    raise ImportError from error\n"
)


def stopped_while_importing(name: str, folder: Path, number: signal.Signals) -> tuple[int, str]:
    here = folder / "importing"
    (folder / "torch.py").write_text(SLOW_TORCH.format(here=str(here)))
    run = f"import runpy, sys; sys.path[:0] = [{str(folder)!r}, '.']; sys.argv = ['{name}.py']; "
    process = subprocess.Popen(
        [sys.executable, "-c", f"{run}runpy.run_path('{name}.py', run_name='__main__')"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not here.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait(60), process.stderr.read()


@pytest.mark.parametrize("name", SCRIPTS)
def test_ctrl_c_while_it_imports(name, tmp_path):
    code, said = stopped_while_importing(name, tmp_path, signal.SIGINT)
    assert (code, said) == (INTERRUPTED, f"\ninterrupted{SAID}")


def test_another_signal_while_it_imports(tmp_path):
    code, said = stopped_while_importing("evaluate", tmp_path, signal.SIGTERM)
    assert (code, said) == (PREEMPTED, f"\nstopped by SIGTERM{SAID}")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT"])
def test_a_script_at_work(name, capsys, monkeypatch):
    number, caught = signal.Signals[name], []

    @script
    def main():
        try:
            signal.raise_signal(number)
        except Exception:  # as of an evaluation that goes on with the next run
            caught.append(number)

    handled = [signal.SIGINT, signal.SIGHUP]  # which a background job, or nohup, ignores
    before = {s: signal.signal(s, signal.SIG_DFL) for s in handled}
    try:
        with pytest.raises(SystemExit) as left:
            main()
        assert all(signal.getsignal(s) == signal.SIG_DFL for s in handled)
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
    what, code = ("interrupted", 130) if name == "SIGINT" else (f"stopped by {name}", 75)
    assert left.value.code == code and not caught
    assert capsys.readouterr().err == f"\n{what}{SAID}"


def test_what_is_ignored_stays_so():
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_it_is_no_error_that_anything_catches():
    assert issubclass(Stopped, KeyboardInterrupt) and not issubclass(Stopped, Exception)


def test_what_is_held_strikes_as_soon_as_it_may():
    """Hydra and OmegaConf make other errors of what is raised in them."""
    done = []
    with pytest.raises(Stopped, match="SIGTERM"), stoppable(), held():
        signal.raise_signal(signal.SIGTERM)
        done.append("composed")
        with held(False):
            done.append("never")
    assert done == ["composed"]
    with pytest.raises(Stopped, match="SIGUSR1"), stoppable():
        with held():
            signal.raise_signal(signal.SIGUSR1)
            done.append("composed again")
        done.append("never")
    with pytest.raises(Stopped), stoppable(), held(), held(False):
        signal.raise_signal(signal.SIGTERM)
        done.append("never")
    assert done == ["composed", "composed again"]


def test_a_second_signal_is_not_held():
    with pytest.raises(Stopped, match="SIGUSR1"), stoppable(), held():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
    with stoppable(), held():  # and nothing of it is left
        pass


ENDS = """
import os, signal, sys
from runtime.signals import end_at_once
end_at_once()
class Last:
    def __del__(self, kill=os.kill, to=os.getpid(), number=int(sys.argv[1])):
        kill(to, number)  # while the interpreter ends
kept = Last()
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("code", [0, PREEMPTED])
def test_after_its_end_a_signal_changes_nothing(number, code):
    done = subprocess.run(
        [sys.executable, "-c", ENDS, str(int(number)), str(code)],
        cwd=ROOT,
        capture_output=True,
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (number, signal.SIGHUP)],
    )
    assert (done.returncode, done.stderr) == (code, b"")
