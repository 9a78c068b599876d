"""What a step asks of a GPU, counted without one: launches, bytes and FLOP of a training and of a
sampling step, ours and diffusers' UNet2DModel of the same config, eager, by kind of operation.

    python -m benchmarks.traffic --model cifar10 --batch 128

The tensors are fake: they have shapes and no values. A CPU build of torch cannot differentiate fake
tensors on a CUDA device, so they are on the CPU, and what torch does otherwise on CUDA is done here
too (see on_cuda). Counted is what must be: each input of an operation is read once and each output
written once, a convolution is one launch (and one for its bias). cuDNN may start more, and a second
read of what the cache has lost is not in it. Milliseconds are these counts over the stated rates:
an operation takes as long as the longer of its bytes and its FLOP, and the host is counted apart.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.common import arguments, peer, report
from benchmarks.networks import MODELS, Model, diffusers_unet, settings
from benchmarks.unet import (
    Candidate,
    as_diffusers,
    as_ours,
    images,
    sampling,
    training,
)
from diffusion.denoiser import Denoiser
from diffusion.parameterization import PredictNoise
from diffusion.schedule import linear
from kernels import dispatch
from kernels.launch import Launch, watched
from kernels.operators import NAMESPACE, RUNS
from models.unet import UNet

M = TypeVar("M", bound=nn.Module)
ATEN = torch.ops.aten
# of multi_tensor_apply, by how many lists an operation takes: tensors, blocks and values of a block
TENSORS, BLOCKS, CHUNK = (110, 64, 48, 36, 30), 320, 65536
KINDS = {  # by how the name of an operation begins
    "convolution": ("convolution", "_conv"),
    "matrix product": ("mm", "addmm", "bmm", "baddbmm"),
    "attention": ("_scaled_dot", "attention"),
    "norm": ("native_group_norm", "group_norm", "add_group_norm", "silu", "native_dropout"),
    "sum": ("sum", "mean", "linalg_vector_norm"),
    "cast": ("_to_copy",),
    "copy": ("cat", "copy_", "clone", "constant_pad_nd", "upsample", "index", "slice_backward"),
    "optimizer": ("_foreach", "_fused_adam"),
    "random number": ("rand", "bernoulli", "normal"),
}
OTHER = "pointwise"
# launches of one operation, where they are not one
SEVERAL = {"native_group_norm": 3, "native_group_norm_backward": 4}
ATTENTION_BACKWARD = 3  # launches: rowsum(dO O), dk and dv with dq, and the cast of dq
# arguments of the norms' kernels; operations that read nothing of what they change
IMAGES_WRITTEN = ("y", "total", "dx", "dskip")
WRITE_ONLY = ("copy_", "zero_", "fill_", "uniform_", "normal_", "random_", "bernoulli_")
HEADING = ["step", "implementation", "kind", "calls", "launches", "GB", "GFLOP", "GPU ms"]


@dataclass(frozen=True)
class Rates:
    """What a GPU and its host are taken to do. bandwidth in TB/s; flops in TFLOP/s; call and
    launch: microseconds of the host for an operation of torch and for a launch of Triton."""

    bandwidth: float = 3.0
    flops: float = 400.0
    call: float = 8.0
    launch: float = 100.0


@dataclass
class Count:
    """Of one kind of operation. ms: of the GPU."""

    calls: int = 0
    launches: int = 0
    bytes: int = 0
    flop: int = 0
    ms: float = 0.0
    triton: int = 0  # launches that are Triton's

    def __add__(self, other: Count) -> Count:
        return Count(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))


class Meter(TorchDispatchMode):
    """Counts the operations of torch inside, and the launches of our operators."""

    def __init__(self, rates: Rates):
        super().__init__()
        self.rates, self.kinds = rates, defaultdict[str, Count](Count)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == NAMESPACE:  # as what it does, and not as one operation
            with self, watched(run=False) as launches:
                out = RUNS[func.__name__.partition(".")[0]](*args, **kwargs)
            for launch in launches:
                self._add(launch.kernel.__name__, 1, size(touched(launch)), work(launch), 1)
            return out
        out = func(*args, **kwargs)
        if func.namespace == "aten" and not is_free(func, args, kwargs, out):
            flop = 0
            if func.overloadpacket in flop_registry:
                flop = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
            moved = traffic(func, args, kwargs, out)
            self._add(func.__name__, launches_of(func, args, out), moved, flop)
        return out

    def _add(self, name: str, launches: int, moved: int, flop: int, triton: int = 0) -> None:
        ms = max(moved / self.rates.bandwidth, flop / self.rates.flops) / 1e9
        self.kinds[kind_of(name)] += Count(1, launches, moved, flop, ms, triton)

    @property
    def total(self) -> Count:
        return sum(self.kinds.values(), Count())

    @property
    def host_ms(self) -> float:
        total = self.total
        calls = total.calls - total.triton
        return (calls * self.rates.call + total.triton * self.rates.launch) / 1e3


def kind_of(name: str) -> str:
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), OTHER)


def size(tree: Any) -> int:
    """Bytes of the different tensors in it. An expanded one has those that are there."""
    storages = {}
    for x in tree_leaves(tree):
        if isinstance(x, Tensor):
            there = math.prod(n for n, stride in zip(x.shape, x.stride()) if stride) * x.itemsize
            storages[id(x)] = there
    return sum(storages.values())


def work(launch: Launch) -> int:
    """FLOP of an attention kernel: 2 matrix products forward, 3 and 4 in the two of the backward;
    none of a norm's."""
    products = {
        "attention_forward_kernel": 2,
        "attention_backward_q_kernel": 3,
        "attention_backward_kv_kernel": 4,
    }.get(launch.kernel.__name__, 0)
    if not products:
        return 0
    images, tokens, _ = launch.arguments["qkv"].shape
    return 2 * products * images * launch.grid[1] * tokens**2 * launch.constants["HEAD"]


def touched(launch: Launch) -> dict[str, Any]:
    """What a kernel reads or writes: the first of two stages of a norm writes no images yet."""
    first = launch.constants.get("STAGE") == 1
    return {k: v for k, v in launch.arguments.items() if not (first and k in IMAGES_WRITTEN)}


def written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that an operation changes. (AdamW's schema names the gradients among them.)"""
    given = dict(zip((a.name for a in func._schema.arguments), args)) | kwargs
    changed = (a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write)
    return [given[name] for name in changed if name in given and name != "grads"]


def traffic(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes: what it reads, once, and what it writes. A convolution's bias is a pass of its own on
    CUDA."""
    changed = written(func, args, kwargs)
    if not changed:
        biased = func is ATEN.convolution.default and args[2] is not None
        return size((args, kwargs)) + size(out) * (3 if biased else 1)
    only_written = func.__name__.startswith(WRITE_ONLY)
    return size((args, kwargs)) + size(changed) * (not only_written)


def is_free(func: Any, args: Any, kwargs: Any, out: Any) -> bool:
    """Whether nothing is launched: a view, or memory that is asked for."""
    name = func.__name__
    if name.startswith(("empty", "new_empty", "detach", "_local_scalar", "lift")):
        return True
    aliases = any(a.alias_info for a in func._schema.returns)
    if name.startswith("_to_copy"):
        return False
    return (aliases and not written(func, args, kwargs)) or not any(
        isinstance(x, Tensor) for x in tree_leaves((args, kwargs, out))
    )


def launches_of(func: Any, args: Any, out: Any) -> int:
    name = func.__name__.partition(".")[0]
    if func is ATEN.convolution.default:
        return 1 + (args[2] is not None)
    if func is ATEN.convolution_backward.default:
        return sum(x is not None for x in out)
    if name.startswith(("_foreach", "_fused_adam")):
        return multi_tensor_launches(args)
    if name.startswith("_scaled_dot"):
        return ATTENTION_BACKWARD if name.endswith("backward") else 1
    return SEVERAL.get(name, 1)


def multi_tensor_launches(args: Any) -> int:
    """As torch's multi_tensor_apply cuts its lists: a launch ends with so many blocks, or with the
    last block of so many tensors."""
    lists = [a for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
    most = TENSORS[min(len(lists), len(TENSORS)) - 1]
    launches = tensors = blocks = 0
    for x in lists[0]:
        tensors += 1
        chunks = max(1, -(-x.numel() // CHUNK))
        for chunk in range(1, chunks + 1):
            blocks += 1
            if blocks == BLOCKS or (tensors == most and chunk == chunks):
                launches, blocks, tensors = launches + 1, 0, int(chunk < chunks)
    return launches + (blocks > 0)


class CudaAutocast(TorchFunctionMode):
    """What autocast does on CUDA and not on a CPU: group norm in float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.group_norm, torch.group_norm) and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def on_cuda(fused: bool = True) -> Iterator[None]:
    """Fake tensors inside, for which torch and our dispatch choose as on a GPU: CUDA's autocast, a
    launch for many tensors, our kernels for norms (fused) and torch's for attention."""
    foreach = mock.patch("torch.nn.utils.clip_grad._has_foreach_support", lambda *_: True)
    ours = mock.patch.object(dispatch, "fused", lambda device: fused)
    with FakeTensorMode(allow_non_fake_inputs=True), foreach, ours, CudaAutocast():
        yield


def fake(network: M, layout: torch.memory_format, dtype: Any = torch.float32) -> M:
    """A network made under on_cuda, its weights in a layout and a type."""
    for module in network.modules():
        for name, p in module._parameters.items():
            if p is not None:
                how = layout if p.ndim == 4 else torch.contiguous_format
                values = torch.empty(p.shape, dtype=dtype, memory_format=how)
                module._parameters[name] = nn.Parameter(values)
    return network


def candidate(name: str, model: Model) -> Candidate | None:
    """That of benchmarks.unet, of a network without values."""
    if name == "ours":
        with on_cuda():
            network = fake(UNet(**settings(model)), torch.channels_last)
        return as_ours(network, Denoiser(network, linear(), PredictNoise()))
    if not (diffusers := peer("diffusers")):
        return None
    with on_cuda():
        network = fake(diffusers_unet(diffusers, model), torch.contiguous_format)
    return as_diffusers(diffusers, network, "NCHW")


def measured(chosen: Candidate, mode: str, model: Model, batch: int, rates: Rates) -> Meter:
    """One step, after one that allocates what an optimizer keeps."""
    prepare = {"training": training, "sampling": sampling}[mode]
    meter = Meter(rates)
    # copying a network, as its average does, asks each tensor for its memory
    warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
    with on_cuda():
        step = prepare(chosen, lambda: torch.autocast("cpu", torch.bfloat16))
        inputs = images(batch, model.size, torch.device("cpu"), chosen.layout)
        step(*inputs)
        with meter:
            step(*inputs)
    return meter


def rows_of(mode: str, name: str, meter: Meter) -> list[list[object]]:
    """Kind by kind, and together."""
    kinds = sorted(meter.kinds.items(), key=lambda item: -item[1].ms)
    return [
        [
            mode,
            name,
            kind,
            c.calls,
            c.launches,
            f"{c.bytes / 1e9:.3f}",
            f"{c.flop / 1e9:.1f}",
            f"{c.ms:.3f}",
        ]
        for kind, c in [*kinds, ("together", meter.total)]
    ]


def main(argv: Sequence[str] | None = None) -> None:
    chosen = arguments(
        "what a step asks of a GPU, counted",
        argv,
        model=tuple(MODELS),
        batch=128,
        bandwidth=Rates.bandwidth,
        tflops=Rates.flops,
        call_us=Rates.call,
        launch_us=Rates.launch,
    )
    model = MODELS[chosen.model]
    rates = Rates(chosen.bandwidth, chosen.tflops, chosen.call_us, chosen.launch_us)
    print(f"{chosen.model}, batch {chosen.batch}, bf16 autocast; {rates}")
    rows, host = [], []
    for mode in ("training", "sampling"):
        for name in ("ours", "diffusers"):
            if found := candidate(name, model):
                meter = measured(found, mode, model, chosen.batch, rates)
                rows += rows_of(mode, name, meter)
                host.append(
                    f"{mode}, {name}: GPU {meter.total.ms:.1f} ms, host {meter.host_ms:.1f} ms"
                )
    report([HEADING, *rows], chosen.csv, chosen.device)
    print("\n".join(host))


if __name__ == "__main__":
    main()
