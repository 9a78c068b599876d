"""What train.precision=auto comes to."""

import pytest
import torch

from runtime.precision import pick_precision


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_bf16_where_the_gpu_has_it_and_does_not_emulate_it(monkeypatch, has):
    """A V100 or T4 computes bf16 by float32, and torch counts that unless it is asked not to."""

    def is_supported(including_emulation: bool = True) -> bool:
        return has or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert pick_precision("auto", torch.device("cuda")) == ("bf16" if has else "fp32")
    assert pick_precision("auto", torch.device("cpu")) == "fp32"
    assert pick_precision("tf32", torch.device("cuda")) == "tf32"
