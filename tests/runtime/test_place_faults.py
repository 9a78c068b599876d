"""Places that the system refuses: one message with the place and the cure, and code 2."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import UserError, message_of
from runtime.files import make_directory, write_atomically, write_directory
from tests.helpers import ROOT, runs

LONG = "x" * 260


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return runs.finish(tmp_path_factory.mktemp("trained"), ["train.steps=4"])


@pytest.mark.parametrize(
    "script, arguments, says",
    [
        ("train", [f"run.experiment={LONG}"], "File name too long. Give a shorter one."),
        ("train", ["data=folder", f"data.path={LONG}"], "File name too long"),
        ("train", ["run.root=/proc/x"], "/proc/x/custom"),
        ("train", ["run.cache=/proc/y", "run.root={}"], "/proc/y"),
        ("sample", ["checkpoint={}", f"out={LONG}", "n=1"], "File name too long"),
        ("evaluate", ["checkpoint={}", f"out={LONG}"], "File name too long"),
        ("export", ["checkpoint={}", "out=/proc/x/y"], "/proc/x"),
        ("report", [LONG], "File name too long"),
    ],
)
def test_a_place_that_cannot_be(trained, tmp_path, script, arguments, says):
    tiny = [*runs.TINY, f"run.root={tmp_path}", f"run.cache={tmp_path}"]
    there = trained if script != "train" else tmp_path
    given = [*(tiny if script == "train" else []), *(a.format(there) for a in arguments)]
    done = runs.command(f"{script}.py", *given)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert says in done.stderr.splitlines()[-1]


def test_a_directory_that_cannot_be_made():
    with pytest.raises(UserError, match="^/proc/x/y: no directory can be made there.*run.root"):
        make_directory(Path("/proc/x/y"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_server_that_fails_names_the_file(tmp_path, monkeypatch, number):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fails)
    for write, content in ((write_atomically, b"new"), (write_directory, {"a": b"new"})):
        with pytest.raises(OSError) as error:
            write(tmp_path / "kept", content)
        assert message_of(error.value) == (
            f"{tmp_path}/kept: {os.strerror(number)}. The disk, or the server that has it, fails: "
            "run the same command again once it is mended."
        )


def test_a_limit_on_files_is_told(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from runtime.errors import one_message; "
        "from runtime.files import write_atomically as write; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "one_message(lambda: write(Path(sys.argv[1]), bytes(9999)))()"
    )
    (tmp_path / "kept").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "kept"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr == (
        f"error: files may not be as large here: {tmp_path}/kept was not written, and what was "
        "there is unharmed. Raise the limit (ulimit -f) and run the same command again.\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_bytes() == b"old"
