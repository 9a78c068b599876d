"""benchmarks.gpu with steps that are told what to do, for the tests of what it does about them."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks import gpu, gpu_steps
from benchmarks.gpu_steps import Step


def returns(**values):
    return lambda: values


def raises(error):
    def run():
        raise error

    return run


def hangs():
    """In a process of its own, whose number is told beside the results."""
    sleeping = subprocess.Popen(["sleep", "100"])
    (Path(sys.argv[sys.argv.index("--out") + 1]) / "sleeping").write_text(str(sleeping.pid))
    sleeping.wait()


def parts(found):
    return lambda device: found


gpu.MODULE = "tests.helpers.stub_gpu"
gpu_steps.STEPS[:] = [
    Step("quick", "two numbers", 60, parts([("a", returns(x=1.0)), ("b", returns(x=2.0))])),
    Step(
        "fails",
        "one of three",
        60,
        parts(
            [
                ("a", returns(x=1.0)),
                ("b", raises(ValueError("wrong"))),
                ("c", returns(x=3.0)),
            ]
        ),
    ),
    Step(
        "poisons",
        "the device is lost",
        60,
        parts(
            [
                ("a", raises(RuntimeError("CUDA error: an illegal memory access"))),
                ("b", returns(x=2.0)),
            ]
        ),
    ),
    Step("hangs", "past its limit", 20, parts([("a", hangs), ("b", returns())])),
    Step("dies", "without a word", 60, parts([("a", partial(os._exit, 9)), ("b", returns())])),
    Step("broken", "before it begins", 60, lambda device: 1 / 0),
    Step(
        "shares",
        "what was promised",
        60,
        parts(
            [
                ("group_norm_act forward", returns(share=0.85)),
                ("group_norm_act backward", returns(share=0.5)),
            ]
        ),
    ),
]
gpu_steps.STEPS[:] = [step._replace(everywhere=True) for step in gpu_steps.STEPS]

if __name__ == "__main__":
    gpu.main()
