"""The specification of the fused operations, against formulas and published values."""

import math

import pytest
import torch
import torch.nn.functional as F

from kernels import reference
from kernels.reference import keep, kept_share, philox

KNOWN = [  # counter, key, words: the known answers that come with Random123, the authors' library
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(counter, key, words):
    assert [
        word.item()
        for word in philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    ] == list(words)


def words(counter, key):
    """Philox4x32-10 in Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("seed", [7, 2**61 + 12345, -(2**62) - 5])
def test_a_mask_is_its_definition(seed, layout):
    """Element by element, at a size that eight does not divide."""
    x = torch.empty(3, 5, 3, 7).contiguous(memory_format=layout)
    mask = keep(x, 0.3, torch.tensor([seed]))
    assert mask.is_contiguous(memory_format=layout) and mask.dtype == x.dtype
    key = seed % 2**32, seed // 2**32 % 2**32
    for n in range(3):
        for c in range(5):
            for hw in range(21):
                word = words((hw // 8 * 5 + c, n, 0, 0), key)[hw % 8 // 2]
                half = word >> 16 if hw % 2 else word % 2**16
                assert mask[n, c, hw // 7, hw % 7] == (half >= round(0.3 * 2**16)), (n, c, hw)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(p):
    """The share of zeros is p to four standard deviations, and the mean of what is left over all
    elements 1."""
    x, seed = torch.empty(8, 64, 32, 32), torch.tensor([11])
    share = keep(x, p, seed).double().mean().item()
    assert abs(share - (1 - p)) < 4 * math.sqrt(p * (1 - p) / x.numel()) + 2**-17
    assert abs(kept_share(p) - (1 - p)) <= 2**-17
    images = torch.randn(2, 8, 6, 6)
    weight, bias = torch.randn(8), torch.randn(8)
    plain = reference.group_norm_act(images, weight, bias, 4, 1e-6)
    dropped = reference.group_norm_act(images, weight, bias, 4, 1e-6, dropout=p, seed=seed)
    torch.testing.assert_close(dropped, plain * keep(images, p, seed) / kept_share(p))


def test_the_mask_of_an_image_does_not_depend_on_the_batch():
    seed, many = torch.tensor([3]), torch.empty(6, 8, 4, 4)
    assert torch.equal(keep(many, 0.4, seed)[:2], keep(many[:2], 0.4, seed))
    assert not torch.equal(keep(many, 0.4, seed)[0], keep(many, 0.4, seed)[1])
    assert not torch.equal(keep(many, 0.4, seed), keep(many, 0.4, torch.tensor([4])))


def inputs():
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return (
        normal(2, 12, 3, 5) + 2,
        normal(12),
        normal(12),
        normal(2, 12),
        normal(2, 12),
        normal(1, 12),
    )


def test_group_norm_act_is_its_formula():
    x, weight, bias, row_bias, scale, shift = inputs()
    grouped = (x + row_bias[:, :, None, None]).reshape(2, 4, -1)
    mean, variance = grouped.mean(2, keepdim=True), grouped.var(2, correction=0, keepdim=True)
    normed = ((grouped - mean) / (variance + 1e-5).sqrt()).view_as(x) * weight[
        :, None, None
    ] + bias[:, None, None]
    u = normed * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    torch.testing.assert_close(
        reference.group_norm_act(x, weight, bias, 4, 1e-5, "identity", row_bias, scale, shift), u
    )
    torch.testing.assert_close(
        reference.group_norm_act(x, weight, bias, 4, 1e-5, "silu", row_bias, scale, shift),
        u / (1 + (-u).exp()),
    )


def test_sums_and_concatenations_are_what_they_say():
    x, weight, bias, row_bias, *_ = inputs()
    h, residual, skip = x[:, :8], x[:, 4:], x[:, 8:].flip(2)
    total, y = reference.add_group_norm_act(
        h, residual, weight[:8], bias[:8], 4, 1e-5, row_bias=row_bias[:, :8]
    )
    torch.testing.assert_close(total, h + residual + row_bias[:, :8, None, None])
    torch.testing.assert_close(y, F.silu(F.group_norm(total, 4, weight[:8], bias[:8], 1e-5)))
    for given in (
        {},
        {"residual": residual},
        {"row_bias": row_bias[:, :8]},
        {"residual": residual, "row_bias": row_bias[:, :8]},
    ):
        cat, y = reference.group_norm_act_cat(h, skip, weight, bias, 4, 1e-5, **given)
        left = (
            h
            + given.get("residual", 0)
            + (row_bias[:, :8, None, None] if "row_bias" in given else 0)
        )
        torch.testing.assert_close(cat, torch.cat([left, skip], 1))
        torch.testing.assert_close(y, F.silu(F.group_norm(cat, 4, weight, bias, 1e-5)))
