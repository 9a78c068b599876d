"""The fused operations at the shapes at which the UNets of conf/model run them: what the tuner
tunes for."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import reference
from kernels.launch import Launch, watched

GROUPS, EPS, DROPOUT = 32, 1e-6, 0.1
BATCHES, LARGE_BATCHES = (128, 16), (16, 2)

Function = Callable[..., Any]
# height = width, channels of h, channels that a skip brings to it
Level = tuple[int, int, tuple[int, ...]]
SMALL: list[Level] = [  # of the CIFAR-10 and the CelebA network
    (64, 128, (128,)),
    (64, 256, (128,)),
    (32, 128, (128,)),
    (32, 256, (128, 256)),
    (16, 128, ()),
    (16, 256, (128, 256)),
    (16, 512, (256,)),
    (8, 256, (256,)),
    (8, 512, (256,)),
    (4, 256, (256,)),
    (4, 512, (256, 512)),
]
LARGE: list[Level] = [
    (256, 128, (128,)),
    (256, 256, ()),
    (128, 128, (128,)),
    (128, 256, (128,)),
    (64, 256, (128, 256)),
    (32, 256, (256,)),
    (32, 512, (256,)),
    (16, 512, (256, 512)),
    (8, 512, (512,)),
]
# tokens, heads, channels of a head; those of 512 channels are torch's
ATTENTION = [
    (16, 1, 256),
    (256, 1, 256),
    (16, 4, 64),
    (64, 4, 64),
    (256, 4, 64),
    (64, 12, 64),
    (256, 9, 64),
    (1024, 6, 64),
]


class Work(NamedTuple):
    """operation: a function of kernels.reference. tensors: sizes and types of its tensors by the
    names of its arguments, four sizes being an image in channels_last. settings: the rest of its
    arguments."""

    operation: str
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]
    settings: dict[str, Any]

    def __str__(self) -> str:
        tensors = [
            f"{name} {'x'.join(map(str, sizes))} {str(dtype)[6:]}"
            for name, (sizes, dtype) in self.tensors.items()
        ]
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        return ", ".join([self.operation, *tensors, *settings])

    @property
    def batch(self) -> int:
        return next(iter(self.tensors.values()))[0][0]

    def inputs(self, device: torch.device | None = None) -> dict[str, Tensor]:
        """Normal values; without a device, a CPU's memory as it is, for a run that only notes its
        kernels."""
        return {
            name: _tensor(sizes, dtype, device) for name, (sizes, dtype) in self.tensors.items()
        }

    def weights(self, outputs: list[Tensor]) -> list[Tensor]:
        """Normal values, for results()."""
        dtype = next(iter(self.tensors.values()))[1]
        return [_tensor(y.shape, dtype, y.device).detach() for y in outputs]

    def forward(self, function: Function, inputs: dict[str, Tensor]) -> list[Tensor]:
        outputs = function(**inputs, **self.settings)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]

    def results(
        self, function: Function, inputs: dict[str, Tensor], weights: list[Tensor] | None = None
    ) -> list[Tensor]:
        """The outputs, and the gradients of the inputs that need one. weights: of each output in
        the scalar that is differentiated; if None, the outputs themselves, where values do not
        matter."""
        outputs = self.forward(function, inputs)
        values = [y.detach() for y in outputs]
        wanted = [x for x in inputs.values() if x.requires_grad]
        return values + list(torch.autograd.grad(outputs, wanted, weights or values))

    def launches(self) -> list[Launch]:
        """Of the Triton implementation, forward and backward, noted on a CPU and not run."""
        with watched(run=False) as launches:
            self.results(self.fused(), self.inputs())
        return launches

    def fused(self) -> Function:
        """The Triton implementation."""
        from kernels import attention, group_norm

        return getattr(attention if self.operation == "attention" else group_norm, self.operation)

    def judge(self) -> Function:
        return getattr(reference, self.operation)


def _tensor(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device | None) -> Tensor:
    layout = torch.channels_last if len(sizes) == 4 else torch.contiguous_format
    x = torch.empty(sizes, dtype=dtype, device=device, memory_format=layout)
    if not dtype.is_floating_point:
        return x.fill_(1234)
    return (x.normal_() if device else x).requires_grad_()


def norms(
    batch: int, size: int, channels: int, skips: tuple[int, ...], dtype: torch.dtype
) -> Iterator[Work]:
    """The norms at one width: before a block's first convolution; before its second, with the time
    as a bias and dropout, or as scale and shift; the sum of a residual, before the next block; in
    the decoder."""

    image, row = ((batch, channels, size, size), dtype), ((batch, channels), dtype)

    def work(operation: str, *names: str, skip: int = 0, **settings: Any) -> Work:
        affine = ((channels + skip,), torch.float32)
        shapes = {
            "x": image,
            "residual": image,
            "weight": affine,
            "bias": affine,
            "row_bias": row,
            "scale": row,
            "shift": row,
            "seed": ((1,), torch.int64),
            "skip": ((batch, skip, size, size), dtype),
        }
        tensors = {name: shapes[name] for name in ("x", "weight", "bias", *names)}
        return Work(operation, tensors, {"groups": GROUPS, "eps": EPS, **settings})

    yield work("group_norm_act")
    yield work("group_norm_act", act="identity")
    yield work("group_norm_act", "row_bias", "seed", dropout=DROPOUT)
    yield work("group_norm_act", "row_bias", "scale", "shift")
    yield work("add_group_norm_act", "residual", "row_bias")
    for skip in skips:
        yield work("group_norm_act_cat", "residual", "row_bias", "skip", skip=skip)


def attentions(batch: int, tokens: int, heads: int, head: int, dtype: torch.dtype) -> Work:
    return Work("attention", {"qkv": ((batch, tokens, 3 * heads * head), dtype)}, {"heads": heads})


def workloads(batches: tuple[int, ...] = BATCHES) -> Iterator[Work]:
    """All of them, the large batches first; images of 256 pixels at LARGE_BATCHES."""
    for dtype in (torch.bfloat16, torch.float32):
        for batch in batches:
            for level in SMALL:
                yield from norms(batch, *level, dtype)
            for sizes in ATTENTION:
                yield attentions(batch, *sizes, dtype)
        for batch in LARGE_BATCHES:
            for level in LARGE:
                yield from norms(batch, *level, dtype)
