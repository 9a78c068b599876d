"""run.deterministic: a GPU repeats its bits, and a CPU is left as it is."""

from __future__ import annotations

import os

import pytest
import torch

from runtime.device import repeat_bits
from tests.helpers import runs

ON_GPU = ["run.device=cuda", "run.deterministic=true", "train.precision=bf16"]


@pytest.fixture
def settings_of_torch(monkeypatch):
    """As they were, afterwards."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_what_torch_asks_for_is_set_and_taken_back(settings_of_torch):
    repeat_bits(True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.utils.deterministic.fill_uninitialized_memory
    repeat_bits(False)  # the next cell of a sweep in this process
    assert not torch.are_deterministic_algorithms_enabled()


def test_on_a_cpu_it_changes_no_bit_and_no_name(undisturbed, tmp_path):
    expected = undisturbed()
    runs.assert_same_run(runs.finish(tmp_path, ["run.deterministic=true"]), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_on_a_gpu_a_killed_run_ends_with_the_bits_of_one_that_was_not(tmp_path):
    """Killed in the middle of the checkpoint at step 8, and resumed."""
    expected = runs.finish(tmp_path / "expected", ON_GPU)
    done = runs.operations(tmp_path / "expected")
    at = str(runs.number_of(done, r"write \.step_8/optimizer.pt"))
    code, text = runs.train(tmp_path / "killed", ON_GPU, at)
    assert code == -9, text
    runs.assert_same_run(runs.finish(tmp_path / "killed", ON_GPU), expected)
