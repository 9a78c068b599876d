"""The labels that classifier-free guidance is trained on. Its formula: test_parameterization."""

import pytest
import torch

from diffusion.guidance import drop_labels


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_this_share_of_each_class_becomes_the_null_class(share):
    label = torch.arange(3).repeat(20_000)
    found = drop_labels(label, 3, share, torch.Generator().manual_seed(0))
    dropped = found == 3
    assert torch.equal(found[~dropped], label[~dropped])
    for k in range(3):  # 5 standard deviations of a binomial
        off = dropped[label == k].double().mean().item() - share
        assert abs(off) <= 5 * (share * (1 - share) / 20_000) ** 0.5
