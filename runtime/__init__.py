"""The process and not the maths: configuration, files, checkpoints, randomness, logs, signals.
Imports nothing of ours."""

import importlib.util
import os
import sys


def _end(why: str) -> None:
    """Before anything else is imported that would say it worse."""
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


if importlib.util.find_spec("fcntl") is None:  # the first of what is not there on Windows
    _end("fcntl is missing, as on Windows: use WSL (Windows Subsystem for Linux).")
try:
    os.getcwd()
except FileNotFoundError:  # torch would not find its libraries
    _end("the working directory is gone: cd to one that is there, and give the command again.")
