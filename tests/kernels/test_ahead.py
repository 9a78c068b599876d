"""Every kernel compiled for GPUs that are not here: no register spills, and bf16 images are read
128 bits at a time. `pytest -s` shows what each binary needs."""

import re
from collections.abc import Iterator
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from kernels.ahead import Resources, compile_for, specialized
from kernels.dispatch import LARGEST_GROUP
from kernels.launch import Launch
from kernels.workloads import GROUPS, Work, attentions, norms, workloads

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory that a block can have
BF16, FP32 = torch.bfloat16, torch.float32


def of(
    batch: int, size: int, channels: int, skips: tuple[int, ...] = (), dtype: torch.dtype = BF16
) -> dict[str, Work]:
    """The works at one width, by what they are."""
    names = ["plain", "identity", "dropout", "adaptive", "add", *(f"cat{skip}" for skip in skips)]
    return dict(zip(names, norms(batch, size, channels, skips, dtype), strict=True))


REPRESENTATIVE = [
    of(128, 32, 128)["plain"],
    of(128, 16, 256)["dropout"],
    of(128, 4, 256)["add"],
    of(128, 32, 256, (128,))["cat128"],
    of(128, 64, 128, dtype=FP32)["plain"],
    of(16, 32, 384)["adaptive"],
    of(2, 256, 128)["dropout"],
    of(2, 256, 128, (128,))["cat128"],
    of(1, 8, 1024)["adaptive"],
    of(1, 1, 128)["add"],
    of(2, 256, 256, dtype=FP32)["adaptive"],
    attentions(128, 256, 1, 256, BF16),
    attentions(16, 1024, 6, 64, BF16),
    attentions(2, 64, 4, 16, BF16),
    attentions(1, 64, 4, 64, FP32),
    attentions(2, 200, 1, 128, BF16),
]


def key(launch: Launch) -> tuple:
    """Launches of equal keys are one binary."""
    source = specialized(launch)
    named = [source.signature, source.constants, source.attrs, launch.options]
    return (launch.kernel.__module__, launch.kernel.__name__, *map(repr, named))


def everything() -> dict[tuple, tuple[Work, Launch]]:
    """One launch of each binary that the UNets need, and of the widest groups."""
    extra = [
        attentions(batch, tokens, 4, head, dtype)
        for batch in (1, 128)
        for tokens in (64, 256, 1024)
        for head in (16, 64, 256)
        for dtype in (BF16, FP32)
    ]
    widest = [
        work for dtype in (BF16, FP32) for work in norms(2, 16, GROUPS * LARGEST_GROUP, (), dtype)
    ]
    works = [*REPRESENTATIVE, *workloads((128, 16, 1)), *extra, *widest]
    return {key(launch): (work, launch) for work in works for launch in work.launches()}


_binaries: dict[tuple, Resources] = {}


def compiled(launch: Launch, capability: int) -> Resources:
    """Each binary is made once."""
    which = (key(launch), capability)
    if which not in _binaries:
        _binaries[which] = compile_for(launch, capability)
    return _binaries[which]


def check(work: Work, launch: Launch, capability: int) -> None:
    needs = compiled(launch, capability)
    constants = " ".join(
        f"{name}={value}"
        for name, value in (launch.constants | launch.options).items()
        if value is not None
    )
    print(
        f"\nsm_{capability} {launch.kernel.__name__:12} {needs.registers:3} registers, stack "
        f"{needs.stack}, shared {needs.shared:6}: {constants}; {work}",
        end="",
    )
    assert needs.stack == 0, f"{needs.registers} registers and {needs.stack} bytes in local memory"
    assert needs.shared <= SHARED[capability]
    if capability == 90 and work.operation != "attention":
        arguments = SimpleNamespace(**launch.arguments)
        for name, widths in loads(needs.ptx, launch).items():
            x = attrgetter(name)(arguments)
            if x.dim() == 4 and x.dtype == BF16 and x.shape[2] > 1:
                assert widths == {128}, f"{name} is read {sorted(widths)} bits at a time"


def leaves(name: str, kind: Any) -> Iterator[tuple[str, str]]:
    """The types of an argument and of what is in it, by name: h.pointer."""
    if isinstance(kind, tuple):
        for field, part in zip(kind._fields, kind):
            yield from leaves(f"{name}.{field}", part)
    else:
        yield name, kind


def _follow(line: str, made_of: dict[str, set[str]]) -> bool:
    """Whether the register that this line computes is made of more tensors than was known."""
    found = re.match(r"(?:@\S+ )?(?:add|sub|mad|mov|selp|cvta|shl|mul)\S*\s+(%rd\d+), (.*);", line)
    if not found:
        return False
    known = made_of.setdefault(found[1], set())
    before = len(known)
    for register in re.findall(r"%rd\d+", found[2]):
        known |= made_of.get(register, set())
    return len(known) > before


def loads(ptx: str, launch: Launch) -> dict[str, set[int]]:
    """The widths in bits of the loads from each tensor that is loaded from: an address is followed
    back, through the registers that it is made of, to the parameters."""
    kinds = dict(leaf for each in specialized(launch).signature.items() for leaf in leaves(*each))
    parameters = [name for name, kind in kinds.items() if kind != "constexpr"]
    pointers = {name for name in parameters if kinds[name].startswith("*")}
    lines = [line.strip() for line in ptx.splitlines()]
    made_of: dict[str, set[str]] = {}  # by register
    for line in lines:
        if found := re.match(r"ld\.param\.b64\s+(%rd\d+), \[\w+_param_(\d+)\]", line):
            place = int(found[2])  # behind ours, Triton's own
            made_of[found[1]] = {parameters[place]} & pointers if place < len(parameters) else set()
    while sum(_follow(line, made_of) for line in lines):
        pass
    widths: dict[str, set[int]] = {}
    for line in lines:
        if found := re.search(r"ld\.global\S*?(?:\.v(\d))?\.[bsuf](\d+)\s.*\[\s*(%rd\d+)", line):
            assert made_of.get(found[3]), f"an address of unknown origin: {line}"
            for name in made_of[found[3]]:
                widths.setdefault(name, set()).add(int(found[1] or 1) * int(found[2]))
    return widths


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("work", REPRESENTATIVE, ids=str)
def test_no_register_spills_and_images_are_read_128_bits_at_a_time(work, capability):
    launches = work.launches()
    assert {re.search("forward|backward", launch.kernel.__name__)[0] for launch in launches} == {
        "forward",
        "backward",
    }
    for launch in launches:
        check(work, launch, capability)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("capability", [80, 90])
def test_every_binary_of_the_published_networks(capability):
    wrong = []
    for work, launch in everything().values():
        try:
            check(work, launch, capability)
        except AssertionError as error:
            wrong.append(
                f"{launch.kernel.__name__} {launch.constants} {launch.options}: {error}; {work}"
            )
            print(f"\n{wrong[-1]}", end="")
    assert not wrong, "\n".join(wrong)


# The compiler itself, on kernels of known needs


@triton.jit
def scaled(x, bias, out, n, stride, factor, BLOCK: tl.constexpr, OFFSET: tl.constexpr = 0):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at * stride + OFFSET, mask=at < n, other=0.0).to(tl.float32) * factor
    if bias is not None:
        value += tl.load(bias + at, mask=at < n, other=0.0)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=at < n)


@triton.jit
def crowded(a, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(a + at)
    tl.store(out + at, x - tl.sum(x))  # all of x is alive at the sum


def start_of(x: torch.Tensor, **changed) -> Launch:
    arguments = {"x": x, "bias": None, "out": x, "n": 1024, "stride": 1, "factor": 0.5} | changed
    return Launch(scaled, (4,), arguments, {"BLOCK": 1024}, {"num_warps": 4, "num_stages": 2})


X = torch.empty(4096, dtype=BF16)


@pytest.mark.parametrize(("x", "bits"), [(X, 128), (X[1:], 16)])
def test_the_widths_of_loads_are_read_from_the_binary(x, bits):
    bias = torch.empty(1024)
    launch = start_of(x, bias=bias)
    assert loads(compile_for(launch).ptx, launch) == {"x": {bits}, "bias": {128}}


def test_a_process_that_interprets_is_told_so():
    from triton.runtime.interpreter import InterpretedFunction

    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compile_for(start_of(X)._replace(kernel=InterpretedFunction(scaled.fn)))


def test_spills_are_seen():
    """16384 values among 32 threads are 512 for each, which has 255 registers; among 256 threads
    they fit."""
    x = torch.empty(2**14)
    start = Launch(crowded, (1,), {"a": x, "out": x}, {"BLOCK": 2**14}, {"num_warps": 1})
    needs, fitting = compile_for(start), compile_for(start._replace(options={"num_warps": 8}))
    assert needs.threads == 32 and needs.stack >= 4 * (512 - 255)
    assert 64 <= fitting.registers < 128 and fitting.threads == 256 and fitting.stack == 0


def test_keys_differ_where_binaries_do():
    assert key(start_of(X)) == key(start_of(X, n=2048, factor=0.25)) == key(start_of(X[8:]))
    others = [
        start_of(X),
        start_of(X[1:]),
        start_of(X, n=1000),
        start_of(X, stride=2),
        start_of(X, bias=X),
        start_of(X)._replace(options={"num_warps": 8}),
        start_of(X)._replace(constants={"BLOCK": 512}),
    ]
    assert len({key(launch) for launch in others}) == len(others)
