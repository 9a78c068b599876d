"""Names of devices as people type them."""

import pytest
import torch

from benchmarks import common, gpu
from runtime.device import named_device, pick_device
from runtime.errors import UserError


@pytest.mark.parametrize("name", ["mps", "gpu", "cuda:x", "CPU", "cuda,0", "-1", ""])
def test_a_device_that_is_none_is_one_line(name):
    with pytest.raises(UserError) as raised:
        pick_device(name)
    assert str(raised.value) == (
        f"device={name}: known are auto, cpu, cuda, and of several GPUs cuda:1 or 1."
    )


@pytest.mark.parametrize("name", [1, "1", "cuda:1"])
def test_a_number_is_that_of_a_gpu(name):
    assert named_device(name) == torch.device("cuda", 1)


def test_one_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match=r"^device=99: not usable here \(.+\)\. device=auto takes"):
        pick_device(99)


@pytest.mark.parametrize("main", [lambda a: common.arguments("x", a), gpu.main])
def test_benchmarks_say_the_same(main, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--device", "gpu"])
    assert ended.value.code == 2
    assert "error: device=gpu: known are auto, cpu, cuda" in capsys.readouterr().err
