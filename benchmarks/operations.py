"""What benchmarks.kernels times: the operations with their shapes, and who computes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import dispatch, reference
from kernels.workloads import DROPOUT, EPS, GROUPS

Compute = Callable[..., Tensor | tuple[Tensor, ...]]
Implementation = tuple[Compute, list[Tensor]]  # and its inputs, all of which have a gradient


class Case(NamedTuple):
    """shape: of the tensor that U counts, [N, C, H, W] or [B, T, C]. passes: U that must move, by
    pass. variant: the options of group_norm_act. heads: of attention."""

    name: str
    shape: tuple[int, ...]
    passes: dict[str, int]
    variant: str = ""
    heads: int = 0


# Read x, write y; read x and dy, write dx.
PLAIN = {"forward": 2, "backward": 3}
# The split path cannot hold an image's group, so what the statistics are taken from is read twice.
SPLIT = {"forward": 3, "backward": 5}
# Read h and residual, write sum and y; read sum and the gradients of both, write dh, which is the
# residual's too.
ADD = {"forward": 4, "backward": 4}
# U is the concatenated tensor: read both parts, write cat and y; read cat and the gradients of
# both, write those of the parts.
CAT = {"forward": 3, "backward": 4}
# Read qkv (3U), write y; read qkv, y and dy, write dqkv.
ATTENTION = {"forward": 4, "backward": 8}
VARIANTS = ("row_bias", "scale_shift", "dropout", "identity")


def norm_cases(device: torch.device, tiny: bool) -> list[Case]:
    cifar = [
        (batch, *shape) for shape in ((128, 32, 32), (256, 16, 16)) for batch in (128, 256, 512)
    ]
    large, split, varied = [(128, 128, 64, 64)], [(2, 128, 256, 256)], [cifar[1], cifar[4]]
    if device.type != "cuda":
        cifar, large, split, varied = (
            [(4, 128, 32, 32), (4, 256, 16, 16)],
            [],
            [],
            [(4, 256, 16, 16)],
        )
    if tiny:
        cifar, large, split, varied = [(1, 64, 4, 4)], [], [], []
    cases = [Case("group_norm_act", s, PLAIN) for s in cifar + large]
    cases += [Case(f"group_norm_act, {v}", s, PLAIN, v) for v in VARIANTS for s in varied]
    cases += [Case("group_norm_act, split", s, SPLIT) for s in split]
    cases += [Case("add_group_norm_act", s, ADD) for s in cifar + split]
    cases += [Case("group_norm_act_cat", (s[0], 2 * s[1], *s[2:]), CAT) for s in cifar + split]
    return cases


def attention_cases(device: torch.device, tiny: bool) -> list[Case]:
    batch, tokens = (128, (64, 256, 1024)) if device.type == "cuda" else (4, (64, 256))
    if tiny:
        batch, tokens = 1, (16,)
    return [
        Case(f"attention, heads of {width}", (batch, T, 256), ATTENTION, heads=256 // width)
        for width in (64, 256)
        for T in tokens
    ]


def implementations(
    case: Case, dtype: torch.dtype, device: torch.device, compiles: bool
) -> dict[str, Implementation]:
    """Ours, and what else there is on the device. A new compilation for each."""
    make = of_attention if case.heads else of_norm
    found = make(case, dtype, device)
    if compiles:
        function, inputs = found["torch"]
        found["torch.compile"] = torch.compile(function, dynamic=False), inputs
        if device.type == "cuda":
            found["torch.compile, max-autotune"] = (
                torch.compile(function, dynamic=False, mode="max-autotune-no-cudagraphs"),
                inputs,
            )
    return found


def of_norm(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, Implementation]:
    """torch's own has its weights in the type of x, or in fp32 under autocast."""
    kind = case.name.split(",")[0]
    torch.manual_seed(0)
    N, C = case.shape[:2]
    parts = {"group_norm_act": 1, "add_group_norm_act": 2, "group_norm_act_cat": 2}[kind]
    part = (N, C // 2, *case.shape[2:]) if kind == "group_norm_act_cat" else case.shape
    images = [
        torch.randn(part, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        for _ in range(parts)
    ]
    affine = [torch.rand(C, device=device) + 0.5, torch.randn(C, device=device)]
    rows = [
        torch.randn(N, C, device=device, dtype=dtype)
        for _ in range({"row_bias": 1, "scale_shift": 2}.get(case.variant, 0))
    ]

    def inputs(layout=torch.channels_last, weights=torch.float32):
        return [
            *(x.to(memory_format=layout) for x in images),
            *(w.to(weights) for w in affine),
            *rows,
        ]

    compute, seed = (
        {"group_norm_act": norm, "add_group_norm_act": add, "group_norm_act_cat": cat}[kind],
        torch.tensor([7], device=device),
    )
    eager = partial(compute, reference, case.variant, None)
    found: dict[str, Implementation] = {
        "ours": (partial(compute, dispatch, case.variant, seed), inputs()),
        "torch": (eager, inputs(weights=dtype)),
        "torch, NCHW": (eager, inputs(torch.contiguous_format, dtype)),
    }
    if dtype != torch.float32:
        found["torch, autocast"] = partial(autocast, eager, dtype, device.type), inputs()
    elif device.type == "cpu" and kind == "group_norm_act" and not case.variant:
        module = nn.Sequential(nn.GroupNorm(GROUPS, C, EPS), nn.SiLU())
        found["torch modules"] = partial(with_weights, module), inputs()
    if kind == "group_norm_act" and not case.variant and (module := apex(C, device)):
        found["apex"] = partial(with_weights, module), inputs()
    return found


def apex(channels: int, device: torch.device) -> nn.Module | None:
    """NVIDIA's group norm and SiLU in one kernel for channels_last, where it is installed."""
    try:
        from apex.contrib.group_norm import GroupNorm
    except ImportError:  # the package, or the extension that it was to be built with
        return None
    return nn.Sequential(GroupNorm(GROUPS, channels, EPS, device=device, act="silu"))


def norm(
    home, variant: str, seed: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor, *rows: Tensor
) -> Tensor:
    """group_norm_act of home. Without a seed, the dropout is torch's."""
    options = dict(
        zip(
            {"row_bias": ["row_bias"], "scale_shift": ["scale", "shift"]}.get(variant, []),
            rows,
            strict=True,
        )
    )
    own = variant == "dropout" and seed is None
    if variant == "dropout" and not own:
        options |= {"dropout": DROPOUT, "seed": seed}
    y = home.group_norm_act(
        x, weight, bias, GROUPS, EPS, "identity" if variant == "identity" else "silu", **options
    )
    return F.dropout(y, DROPOUT) if own else y


def add(
    home,
    variant: str,
    seed: Tensor | None,
    h: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor]:
    return home.add_group_norm_act(h, residual, weight, bias, GROUPS, EPS)


def cat(
    home, variant: str, seed: Tensor | None, h: Tensor, skip: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    return home.group_norm_act_cat(h, skip, weight, bias, GROUPS, EPS)


def autocast(compute: Compute, dtype: torch.dtype, device: str, *inputs: Tensor):
    """With the cast that the next convolution makes."""
    with torch.autocast(device, dtype):
        outputs = compute(*inputs)
    return tuple(y.to(dtype) for y in outputs) if isinstance(outputs, tuple) else outputs.to(dtype)


def with_weights(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.func.functional_call(module, {"0.weight": weight, "0.bias": bias}, (x,))


def of_attention(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, Implementation]:
    """All start from the packed output of the projection and end at the input of the next, so the
    cost of the layout counts."""
    torch.manual_seed(0)
    B, T, C = case.shape
    inputs = [torch.randn(B, T, 3 * C, device=device, dtype=dtype)]
    backends = (
        {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
        if device.type == "cuda"
        else {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
    )
    found: dict[str, Implementation] = {
        "ours": (partial(attend, dispatch, case.heads), inputs),
        "torch": (partial(attend, reference, case.heads), inputs),
    }
    return found | {
        f"torch, {name}": (partial(with_backend, backend, case.heads), inputs)
        for name, backend in backends.items()
    }


def attend(home, heads: int, qkv: Tensor) -> Tensor:
    return home.attention(qkv, heads)


def with_backend(backend: SDPBackend, heads: int, qkv: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return reference.attention(qkv, heads)
