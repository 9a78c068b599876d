"""How a script starts and is interrupted: exit codes and one line each."""

from __future__ import annotations

import runpy
import signal
import subprocess
import sys

import pytest

from config.overrides import check_overrides
from runtime.download import fetch, published
from runtime.errors import UserError, one_message
from runtime.signals import INTERRUPTED
from tests.helpers import ROOT


def test_without_fcntl_one_message_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "runtime/__init__.py"))
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        "error: fcntl is missing, as on Windows: use WSL (Windows Subsystem for Linux).\n"
    )


@pytest.mark.parametrize("script", ["train", "sample"])
def test_it_comes_before_every_other_message(script):
    """Nothing else that Windows lacks is asked for first."""
    code = (
        "import sys, runpy, signal; sys.modules['fcntl'] = None; sys.path.insert(0, '.'); "
        "[delattr(signal, n) for n in ('SIGUSR1', 'SIGUSR2', 'SIGHUP')]; "
        f"runpy.run_path('{script}.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: fcntl is missing")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "values", ["seed=0,1", "seed=range(3)", "seed=choice(0,1)", "transfer=glob(f*)"]
)
def test_several_values_without_m_are_refused(values):
    with pytest.raises(UserError) as error:
        check_overrides("train", ["+experiment=transfer_demo", values])
    assert str(error.value).startswith(f"{values}: several values are several runs: add -m")


@pytest.mark.parametrize("value", ["true", "True", "yes", "1", "null"])
@pytest.mark.parametrize("key", ["hydra.job.chdir", "++hydra.job.chdir"])
def test_another_working_directory_is_refused(key, value):
    with pytest.raises(UserError, match=r"leave hydra.job.chdir out.*run.root=DIR"):
        check_overrides("train", [f"{key}={value}"])


def test_the_same_working_directory_is_not(monkeypatch):
    check_overrides("train", ["hydra.job.chdir=false"])


def test_ctrl_c_is_one_line_and_130(capsys):
    @one_message
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert left.value.code == INTERRUPTED == 130
    assert said == "\ninterrupted; what was finished stays, and the same command continues\n"


def test_ctrl_c_while_a_file_is_fetched(tmp_path, monkeypatch, capsys, caplog):
    """What came stays, for the same command."""
    caplog.set_level("INFO")
    name = "ddim_celeba64.pth"
    monkeypatch.setattr(
        "runtime.download.receive", lambda wanted: signal.raise_signal(signal.SIGINT)
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as left:
            one_message(lambda: fetch(name, tmp_path / name))()
    finally:
        signal.signal(signal.SIGINT, before)
    assert left.value.code == INTERRUPTED and name in published()
    assert "what came is kept, and the same command goes on" in caplog.text
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("script", ["train", "report"])
def test_a_working_directory_that_is_gone_is_told_first(script, tmp_path):
    """oneMKL would end the process with a line of its own, once torch is imported."""
    gone = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", gone, "sh", sys.executable, ROOT / f"{script}.py", "x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr == (
        "error: the working directory is gone: cd to one that is there, and give the command "
        "again.\n"
    )
