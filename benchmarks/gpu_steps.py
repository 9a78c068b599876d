"""What benchmarks.gpu measures, step by step. A part is a name and what measures it; it returns
values for one line of results."""

from __future__ import annotations

import csv
import io
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common import WARM, graph_us
from benchmarks.networks import MODELS, ours
from diffusion.denoiser import Denoiser
from diffusion.losses import simple_loss
from diffusion.parameterization import PredictNoise
from diffusion.schedule import linear
from kernels import dispatch, workloads
from kernels.workloads import Work
from runtime.precision import arithmetic

Record = dict[str, Any]
Part = tuple[str, Callable[[], Record]]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# over torch's own error, or of the largest value where torch has none
TWICE, LEAST_ERROR = 2.0, {"fp32": 1e-6, "bf16": 8e-3, "fp16": 1e-3}


class Step(NamedTuple):
    """limit: seconds. parts: of a device. environment: of its process. everywhere: a CPU runs it
    too."""

    name: str
    about: str
    limit: float
    parts: Callable[[torch.device], Iterable[Part]]
    environment: dict[str, str] = {}
    everywhere: bool = False


def steps_on(device: torch.device) -> list[Step]:
    """In their order. On a CPU the operators run by Triton's interpreter."""
    if device.type == "cuda":
        return STEPS
    interpreted = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return [
        step._replace(environment=interpreted if step.name == "operators" else {})
        for step in STEPS
        if step.everywhere
    ]


# machine, copies, products


def machine(device: torch.device) -> Iterator[Part]:
    def about() -> Record:
        if device.type != "cuda":
            return {"threads": torch.get_num_threads()}
        p = torch.cuda.get_device_properties(device)
        return {
            "multiprocessors": p.multi_processor_count,
            "memory_GB": round(p.total_memory / 1e9, 1),
            "L2_MB": round(p.L2_cache_size / 1e6, 1),
            "capability": f"{p.major}.{p.minor}",
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }

    yield "about", about


def rates(device: torch.device) -> Iterator[Part]:
    """What a copy and a product of matrices reach: what all others are measured against."""

    def copy(megabytes: int) -> Record:
        us = copy_us(megabytes * 10**6, device)
        return {"us": us, "TB_per_s": 2 * megabytes / us}

    def product(dtype: torch.dtype, n: int = 8192) -> Record:
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        us = graph_us(lambda: [partial(torch.mm, a, b)])
        return {"us": us, "TFLOP_per_s": 2 * n**3 / us / 1e6}

    for megabytes in (16, 67, 1000):
        yield f"copy {megabytes} MB", partial(copy, megabytes)
    for name, dtype in DTYPES.items():
        yield f"matrix product {name}", partial(product, dtype)


def copy_us(size: int, device: torch.device) -> float:
    """The faster of a copy, which a graph holds as a node of its own kind, and of a kernel that
    reads and writes as much."""

    def made(of_one: Callable[[Tensor, Tensor], object]) -> list[Callable[[], object]]:
        pairs = zip(rotated(size, device), rotated(size, device))
        return [partial(of_one, x, y) for x, y in pairs]

    copied = graph_us(lambda: made(lambda x, y: y.copy_(x)))
    return min(copied, graph_us(lambda: made(lambda x, y: torch.neg(x, out=y))))


def rotated(size: int, device: torch.device) -> list[Tensor]:
    """As many tensors of so many bytes as make each read a cold one."""
    return [
        torch.empty(size // 2, dtype=torch.bfloat16, device=device).normal_()
        for _ in range(turns(size, device))
    ]


def turns(size: int, device: torch.device) -> int:
    """How many of so many bytes are together more than three times the L2 cache."""
    return max(2, math.ceil(3 * torch.cuda.get_device_properties(device).L2_cache_size / size))


# the kernels


def compile_kernels(device: torch.device) -> Iterator[Part]:
    """All kernels at batch 128, on all cores: Triton then finds them in its cache."""

    def compile_all() -> Record:
        major, minor = torch.cuda.get_device_capability(device)
        works = [w for w in workloads.workloads((128,)) if w.batch == 128]
        count = min(len(os.sched_getaffinity(0)), 32)
        # a fork of a process with CUDA has no autograd
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, spawn, torch.set_num_threads, (1,)) as pool:
            found = list(pool.map(partial(compile_launches, 10 * major + minor), works))
        failed = [why for _, why in found if why]
        return {"kernels": sum(n for n, _ in found), "processes": count, "failed": failed[:5]}

    yield "kernels at batch 128", compile_all


def compile_launches(capability: int, work: Work) -> tuple[int, str]:
    """How many kernels of a work were compiled, and why one was not."""
    from kernels import ahead

    count = 0
    try:
        for launch in work.launches():
            ahead.compile_for(launch, capability)
            count += 1
    except Exception as error:
        return count, f"{work}: {error}"[:300]
    return count, ""


def operators(device: torch.device) -> Iterator[Part]:
    """Each against float64: outputs and gradients, in both layouts; the same bits twice; nothing
    left unwritten."""
    cuda = device.type == "cuda"
    # batch, side, channels, channels of a skip; 96 x 96 pixels are norms in two stages
    sizes = [(4, 16, 128, (128,)), (2, 96, 64, ())] if cuda else [(2, 4, 64, (64,))]
    tokens = [(2, 64, 2, 64), (2, 100, 1, 40)] if cuda else [(1, 16, 1, 16)]
    for name, dtype in DTYPES.items():
        for batch, size, channels, skips in sizes:
            for work in workloads.norms(batch, size, channels, skips, dtype):
                for layout in ("channels_last", "NCHW"):
                    yield f"{work}, {layout}", partial(checked, work, name, layout, device)
        for sizes_of in tokens:
            work = workloads.attentions(*sizes_of, dtype)
            yield str(work), partial(checked, work, name, "", device)


def checked(work: Work, name: str, layout: str, device: torch.device) -> Record:
    """error: the largest over outputs and gradients, of the largest value. Raises where it is more
    than twice torch's, or where two runs differ."""
    torch.manual_seed(0)
    inputs = {k: laid_out(x, layout) for k, x in work.inputs(device).items()}
    exact = {k: wide(x) for k, x in inputs.items()}
    weights = work.weights(work.forward(work.judge(), inputs))
    expected = work.results(work.judge(), exact, [w.double() for w in weights])
    theirs = work.results(work.judge(), inputs, weights)
    poison(device)
    found = work.results(work.fused(), inputs, weights)
    again = work.results(work.fused(), inputs, weights)
    error, allowed = (max(map(distance, each, expected)) for each in (found, theirs))
    allowed = max(TWICE * allowed, LEAST_ERROR[name])
    if not error <= allowed:
        raise ValueError(f"wrong by {error:.1e} of the largest value, and {allowed:.1e} is allowed")
    if not all(map(torch.equal, found, again)):
        raise ValueError("two runs differ in their bits")
    return {"error": error, "allowed": allowed}


def laid_out(x: Tensor, layout: str) -> Tensor:
    if x.ndim != 4 or layout != "NCHW":
        return x
    return x.detach().contiguous().requires_grad_(x.requires_grad)


def wide(x: Tensor) -> Tensor:
    return x.detach().double().requires_grad_() if x.is_floating_point() else x


def distance(found: Tensor, expected: Tensor) -> float:
    """Of the largest value; NaN is infinitely far."""
    off = (found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    return off.nan_to_num(math.inf).item()


def poison(device: torch.device) -> None:
    """Memory that is given out next holds NaN, which what is not written shows."""
    sizes = 4 * [2**12, 2**16, 2**20, 2**24]
    held = [torch.full((size,), math.nan, device=device) for size in sizes]
    del held


# the network


def network_step(device: torch.device) -> Iterator[Part]:
    """Loss and gradients of one training step, by Triton and by torch, against torch in fp32."""

    def compare(dtype: torch.dtype) -> Record:
        arithmetic("fp32", device)  # convolutions without TF32
        torch.manual_seed(0)
        network = ours(MODELS["cifar10"]).to(device, memory_format=torch.channels_last).eval()
        denoiser = Denoiser(network, linear(), PredictNoise()).to(device)
        x0 = torch.rand(8, 3, 32, 32, device=device) * 2 - 1
        t, noise = torch.arange(1, 9, device=device) * 100, torch.randn_like(x0)

        def step(kernels: dispatch.Kernels, kind: torch.dtype) -> tuple[float, list[Tensor]]:
            dispatch.select(kernels, device)
            network.zero_grad()
            with torch.autocast(device.type, kind, enabled=kind != torch.float32):
                loss = simple_loss(denoiser.forward_pass(x0, t, noise)).mean()
            loss.backward()
            return loss.item(), [p.grad.clone() for p in network.parameters()]

        _, exact = step("reference", torch.float32)
        found: Record = {}
        for name, kernels in (("triton", "triton"), ("torch", "reference")):
            found[f"loss_{name}"], gradients = step(kernels, dtype)
            found[f"{name}_off"] = max(map(distance, gradients, [g.double() for g in exact]))
        return found

    for name in ("fp32", "bf16"):
        yield name, partial(compare, DTYPES[name])


def graph(device: torch.device) -> Iterator[Part]:
    """Sampling as one CUDA graph against the same calls one by one."""
    from sampling.cuda_graph import prepared

    def compare() -> Record:
        arithmetic("fp32", device)
        torch.manual_seed(0)
        dispatch.select("auto", device)
        network = ours(MODELS["cifar10"]).to(device, memory_format=torch.channels_last).eval()
        denoiser = Denoiser(network.requires_grad_(False), linear(), PredictNoise()).to(device)
        x = torch.randn(4, 3, 32, 32, device=device)
        with torch.no_grad():
            ways = [prepared(denoiser, [500, 250], captured)(None) for captured in (True, False)]
            off = [distance(*(way(x, t).x0 for way in ways)) for t in (500, 250)]
        return {"images_off": max(off), "same_bits": max(off) == 0}

    yield "DDIM's network", compare


def profile(device: torch.device) -> Iterator[Part]:
    """A training step: the time of the GPU, of the host, launches and waits."""
    from benchmarks import unet

    def measured(batch: int) -> Record:
        dispatch.select("auto", device)
        autocast = arithmetic("bf16", device)
        candidate = unet.of_ours(ours(MODELS["cifar10"]), 32, device, compiled=False)
        step = unet.training(candidate, autocast)
        inputs = unet.images(batch, 32, device, "channels_last")
        for _ in range(WARM):
            step(*inputs)
        torch.cuda.synchronize()
        began = time.perf_counter()
        step(*inputs)
        host = time.perf_counter() - began  # it has started all, and the GPU may still run
        torch.cuda.synchronize()
        whole = time.perf_counter() - began
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as found:
            step(*inputs)
            torch.cuda.synchronize()
        events = found.key_averages()
        cuda = torch.autograd.DeviceType.CUDA
        # an annotation, such as AdamW's, spans kernels that are there by themselves
        on_gpu = [e for e in events if e.device_type == cuda and not e.is_user_annotation]
        if not on_gpu:
            raise RuntimeError("the profiler saw no kernel")
        waits = ("cudaStreamSynchronize", "cudaEventSynchronize")
        return {
            "gpu_ms": sum(e.self_device_time_total for e in on_gpu) / 1e3,
            "kernels": sum(e.count for e in on_gpu),
            "host_ms": 1e3 * host,
            "step_ms": 1e3 * whole,
            "waits": sum(e.count for e in events if e.key in waits),
            "longest": [
                f"{e.key[:60]} {e.self_device_time_total / 1e3:.2f} ms"
                for e in sorted(on_gpu, key=lambda e: -e.self_device_time_total)[:8]
            ],
        }

    for batch in (128, 16):
        yield f"training {batch}", partial(measured, batch)


def shares(device: torch.device) -> Iterator[Part]:
    """Bytes a second of our kernels over those of a copy, cold caches, in a graph; beside torch's
    and, where it is installed, apex's."""
    from benchmarks.operations import PLAIN, Case, implementations

    def measured(shape: tuple[int, ...], which: str) -> Record:
        from benchmarks.kernels import maker

        dispatch.select("triton", device)
        case = Case("group_norm_act", shape, PLAIN)
        size = math.prod(shape) * 2
        copies, copied = range(turns(size, device)), copy_us(size, device)
        found: Record = {}
        there = implementations(case, torch.bfloat16, device, False)
        for name in (name for name in ("ours", "torch", "apex") if name in there):

            def runs(name: str = name) -> list[Callable[[], object]]:
                ways = (implementations(case, torch.bfloat16, device, False)[name] for _ in copies)
                return [maker(which, *way)() for way in ways]

            us = graph_us(runs)
            share = case.passes[which] / 2 * copied / us  # a copy moves 2 U
            found |= {f"{name}_us": us, "share" if name == "ours" else f"{name}_share": share}
        return found

    for which in ("forward", "backward"):
        yield f"group_norm_act {which}", partial(measured, (128, 128, 32, 32), which)
        yield f"group_norm_act {which}, 16x16", partial(measured, (128, 256, 16, 16), which)


def tuning(device: torch.device) -> Iterator[Part]:
    """Tile sizes of the norms at the shapes that carry the bytes of the CIFAR-10 step, by time.
    What is found is a line here and is not written into kernels/tuned: python -m kernels.tune
    --write does that, in hours."""
    from kernels import tune

    def best(name: str, size: int, channels: int) -> Record:
        dispatch.select("triton", device)
        works = [next(workloads.norms(128, size, channels, (), torch.bfloat16))]
        (shape,) = tune.shapes(name, works)
        found = tune.tuned(name, works, device, lambda run: graph_us(lambda: [run]) / 1e3)
        entry = {tuple(e["shape"].items()): e for e in found}[shape]
        return {"shape": entry["shape"], "config": entry["config"], "ms": entry["rank"][0]}

    for name in ("group_norm_forward", "group_norm_backward"):
        for size, channels in ((32, 128), (16, 256)):
            yield f"{name} {channels}x{size}x{size}", partial(best, name, size, channels)


# against the peers, by their own benchmarks


def rows_of(main: Callable[[Sequence[str]], None], *words: str) -> list[dict[str, str]]:
    """What a benchmark writes as CSV."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with redirect_stdout(io.StringIO()):
            main([*words, "--csv", str(path)])
        with open(path) as file:
            return list(csv.DictReader(file))


def against(rows: Sequence[dict[str, str]], ours: str, theirs: str) -> Record:
    """images/s of each row, and ratio: the fastest of those whose names begin as ours over the
    fastest of theirs."""
    found, speeds = {}, {}
    for row in rows:
        name = f"{row['implementation']} {row.get('layout', '')}".strip()
        name += " compiled" * (row.get("compiled") == "yes")
        found[name] = row["images/s"] or row["median s"]
        with suppress(ValueError):  # "" where it did not run
            speeds[name] = float(row["images/s"])
    best = {kind: [v for n, v in speeds.items() if n.startswith(kind)] for kind in (ours, theirs)}
    if missing := [kind for kind, values in best.items() if not values]:
        return found | {"no_ratio": f"no rows of {', '.join(missing)}"}
    return found | {"ratio": max(best[ours]) / max(best[theirs])}


def training_speed(device: torch.device, *more: str) -> Iterator[Part]:
    from benchmarks import unet

    def measured(mode: str, batch: int) -> Record:
        words = ["--mode", mode, "--batch", str(batch), "--pairs", "6", *more]
        return against(rows_of(unet.main, *words), "ours", "diffusers")

    for mode, batch in (("training", 128), ("training", 16), ("forward", 128)):
        yield f"{mode} {batch}", partial(measured, mode, batch)


def compiled_speed(device: torch.device) -> Iterator[Part]:
    return training_speed(device, "--compile")


def sampling_speed(device: torch.device) -> Iterator[Part]:
    from benchmarks import sampling

    def measured(batch: int) -> Record:
        words = ["--sampler", "ddim", "--batch", str(batch)]
        return against(rows_of(sampling.main, *words), "ours with a graph", "diffusers")

    for batch in (16, 1):
        yield f"ddim {batch}", partial(measured, batch)


def tests(device: torch.device) -> Iterator[Part]:
    def run() -> Record:
        root = Path(__file__).parent.parent
        every = (root / "tests").rglob("test_*.py")
        marked = [str(p) for p in every if "pytest.mark.gpu" in p.read_text()]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *marked]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root)
        lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]]
        if done.returncode:
            told = [x for x in lines if x.startswith(("FAILED", "ERROR", "E  "))][:5]
            raise ValueError(" | ".join([*told, lines[-1]]))
        return {"said": lines[-1]}

    yield "pytest -m gpu", run


def counted(device: torch.device) -> Iterator[Part]:
    """What a step asks of a GPU: see benchmarks.traffic."""
    from benchmarks import traffic

    def run(mode: str) -> Record:
        found = traffic.candidate("ours", MODELS["cifar10"])
        assert found
        total = traffic.measured(found, mode, MODELS["cifar10"], 128, traffic.Rates()).total
        return {"launches": total.launches, "GB": total.bytes / 1e9, "GFLOP": total.flop / 1e9}

    for mode in ("training", "sampling"):
        yield mode, partial(run, mode)


STEPS = [
    Step("machine", "the device", 60, machine, everywhere=True),
    Step("counted", "launches and bytes, without a GPU", 120, counted, everywhere=True),
    Step("rates", "a copy and products of matrices", 60, rates),
    Step("compile", "the kernels, in parallel", 240, compile_kernels),
    Step("operators", "every operator against float64", 240, operators, everywhere=True),
    Step("step", "one training step, Triton against torch", 60, network_step),
    Step("graph", "sampling as one CUDA graph", 60, graph),
    Step("profile", "a training step by the profiler", 60, profile),
    Step("eager", "training and forward, beside diffusers", 180, training_speed),
    Step("shares", "the norms' share of a copy's bandwidth", 60, shares),
    Step("tuning", "tile sizes where the bytes are", 240, tuning),
    Step("sampling", "sampling, beside diffusers", 120, sampling_speed),
    Step("tests", "the tests that are marked gpu", 480, tests),
    Step("compiled", "both by torch.compile", 480, compiled_speed),
]
