"""What the server of tests/helpers/runs.py does before it forks a run: all imports, and what each
run would find out alike. It composes one config, which finds Hydra's plugins and fills the tables
of its parser. What the runs import is compiled once for all, also where PYTHONDONTWRITEBYTECODE is
set."""

from __future__ import annotations

import gc
import importlib
import os
import sys

from hydra._internal.hydra import Hydra
from hydra.types import RunMode

IMPORTS = [
    "torch",
    "torch._dynamo",
    "torch.optim",
    "torch.utils.serialization.config",
    "safetensors.torch",
    "skimage.data",
    "skimage.util",
    "skimage.exposure",
    "skimage.io",
    "scipy.linalg",
    "imageio.v3",
    "PIL.Image",
    "PIL.PngImagePlugin",
    "PIL.JpegImagePlugin",
    "tqdm",
    "train",
    "sample",
    "evaluate",
    "report",
    "tests.helpers.runs",
]

sys.dont_write_bytecode = False
for name in IMPORTS:
    importlib.import_module(name)
check_overrides = importlib.import_module("config.overrides").check_overrides
for chosen in ([], ["+experiment=pretrain_demo"], ["+experiment=transfer_demo"]):
    check_overrides("train", chosen)
check_overrides("sample", [])
# Hydra composes a config for this alone, which no file of ours sets. What begins with nothing
# (test_imports.py, ...) goes by its own way.
Hydra.get_mode = lambda self, config_name, overrides: (
    RunMode.MULTIRUN if "hydra.mode=MULTIRUN" in overrides else None
)
importlib.import_module("runtime.environment").commit()
importlib.import_module("runtime.environment").versions()
os.fsync = lambda fd: None  # no test has the machine fail
gc.freeze()
