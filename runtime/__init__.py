"""The process and not the maths: configuration, files, checkpoints, randomness, logs, signals.
Imports nothing of ours."""

import importlib.util
import sys

if importlib.util.find_spec("fcntl") is None:  # the first of what is not there on Windows
    print(
        "error: fcntl is missing, as on Windows: use WSL (Windows Subsystem for Linux).",
        file=sys.stderr,
    )
    sys.exit(2)
