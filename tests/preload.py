"""What the server of tests/runs.py does before it forks a run: all imports, and what each run would find out alike. It composes one config,
which finds Hydra's plugins and fills the tables of its parser. What the runs import is compiled once for all, also where
PYTHONDONTWRITEBYTECODE is set."""

from __future__ import annotations

import gc
import importlib
import sys

IMPORTS = ["torch", "torch._dynamo", "torch.optim", "torch.utils.serialization.config", "safetensors.torch", "skimage.data", "skimage.util",
           "skimage.exposure", "PIL.Image", "PIL.PngImagePlugin", "PIL.JpegImagePlugin", "tqdm", "train", "sample", "evaluate", "report",
           "tests.runs"]

sys.dont_write_bytecode = False
for name in IMPORTS:
    importlib.import_module(name)
importlib.import_module("runtime.config").check_overrides("train", [])
importlib.import_module("runtime.directory").commit()
importlib.import_module("runtime.directory").versions()
gc.freeze()
