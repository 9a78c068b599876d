"""The offline tuner: `python -m kernels.tune [--write] [--ahead] [NAME ...]` tries configs for
kernels/tuned/NAME.json (all of them, if none is named) at the shapes of kernels.workloads, and
--write keeps the best of each.

On a CUDA device the least median time wins, from a cold L2 cache, among those whose results are
right. --ahead needs no GPU: what the compiler says of a binary for an H100 decides, no spilled
register first, then the most bytes in flight on an SM. That is a model and no measurement, and the
file says so.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import re
import statistics
import subprocess
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from kernels import ahead, configs
from kernels.launch import Launch, watched
from kernels.workloads import Work, workloads
from runtime.environment import device_name, versions

CANDIDATES: dict[str, dict[str, Sequence[int]]] = {  # by the start of a name
    "attention": {
        "queries": (16, 32, 64, 128),
        "keys": (16, 32, 64),
        "num_warps": (4, 8),
        "num_stages": (2, 3),
    },
    "group_norm": {
        "slab": (32, 64, 128),
        "rows": (16, 32, 64),
        "chunk": (256, 1024),
        "num_warps": (4, 8),
    },
}
# its configs say whether they are faster than torch's attention, forward and backward
COMPARED = "attention_forward"
# of the largest value of a result
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-4}
# of an H100, and of each of its SMs
SMS, REGISTERS, SHARED, THREADS, BLOCKS = 132, 65536, 227 * 1024, 2048, 32
CPU = torch.device("cpu")

Config = dict[str, int]
Rank = tuple[float, ...]  # the least is the best
Judge = Callable[[str, Config], "Rank | None"]  # (name, config); None: not to be used


def candidates(name: str, now: Config) -> list[Config]:
    """The present config, and all combinations of CANDIDATES."""
    axes = next((axes for start, axes in CANDIDATES.items() if name.startswith(start)), {})
    axes = {key: values for key, values in axes.items() if key in now}
    combined = [now | dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    return [now, *(config for config in combined if config != now)]


def shapes(name: str, works: Iterable[Work]) -> dict[tuple[tuple[str, int], ...], list[Work]]:
    """The shapes for which a config of this name is asked, and the first work of each batch size
    that asks for them."""
    found: dict[tuple[tuple[str, int], ...], dict[int, Work]] = {}
    for work in works:
        with configs.using(name, configs.entries(name)[0]["config"]) as asked:
            started(asked, work, work.inputs(CPU, random=False))
        for shape in asked:
            found.setdefault(tuple(shape.items()), {}).setdefault(work.batch, work)
    return {shape: list(of_batch.values()) for shape, of_batch in found.items()}


def started(
    asked: list[dict[str, int]],
    work: Work,
    inputs: dict[str, Tensor],
    weights: list[Tensor] | None = None,
) -> tuple[list[Launch], list[Tensor]]:
    """The launches of the pass, forward or backward, that asks for a config, and all results. No
    weights: nothing runs."""
    with watched(run=weights is not None) as launches:
        outputs = work.forward(work.fused(), inputs)
        first, forward = len(launches), len(asked)
        gradients = work.backward(
            outputs, work.weights(outputs, random=False) if weights is None else weights, inputs
        )
    mine = launches[:first] if forward else []
    return mine + (launches[first:] if len(asked) > forward else []), [
        y.detach() for y in outputs
    ] + gradients


def median_ms(run: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(run, return_mode="median")


class Case:
    """A work with inputs on a device, and what it should compute."""

    def __init__(self, work: Work, device: torch.device):
        self.work, self.inputs = work, work.inputs(device, random=True)
        exact = {
            name: x.detach().float().requires_grad_() if x.is_floating_point() else x
            for name, x in self.inputs.items()
        }
        outputs = work.forward(work.judge(), exact)
        self.weights = work.weights(outputs, random=True)
        gradients = work.backward(outputs, [weight.float() for weight in self.weights], exact)
        self.expected = [*(y.detach() for y in outputs), *gradients]

    def right(self, results: list[Tensor]) -> bool:
        return all(
            close(result, expected) for result, expected in zip(results, self.expected, strict=True)
        )


def timed(
    works: Sequence[Work],
    device: torch.device,
    bench: Callable[[Callable[[], object]], float] = median_ms,
) -> Judge:
    """Ranks by the time of the launches in ms, the geometric mean over the works."""
    torch.manual_seed(0)
    cases = [Case(work, device) for work in works]

    def rank(name: str, config: Config) -> Rank | None:
        times = []
        for case in cases:
            with configs.using(name, config) as asked:
                launches, results = started(asked, case.work, case.inputs, case.weights)
            if not case.right(results):
                return None
            times.append(bench(lambda launches=launches: [launch.run() for launch in launches]))
        return (statistics.geometric_mean(times),)

    return rank


def close(result: Tensor, expected: Tensor) -> bool:
    error = (result.float() - expected).abs().max()
    # False where the error is no number
    return bool(error <= TOLERANCE[result.dtype] * expected.abs().max())


def faster_than_torch(
    work: Work, config: Config, device: torch.device, bench: Callable = median_ms
) -> bool:
    inputs = work.inputs(device, random=True)

    def forward(function):
        return bench(lambda: work.forward(function, inputs))

    def both(function):
        def run():
            outputs = work.forward(function, inputs)
            work.backward(outputs, [y.detach() for y in outputs], inputs)

        return bench(run)

    with configs.using(COMPARED, config):
        return forward(work.fused()) < forward(work.judge()) and both(work.fused()) < both(
            work.judge()
        )


def modelled(works: Sequence[Work]) -> Judge:
    """Ranks by (bytes of spilled registers on sm_80 and sm_90, - bytes in flight on an SM of
    sm_90), summed over the launches."""

    def rank(name: str, config: Config) -> Rank | None:
        launches = []
        for work in works:
            with configs.using(name, config) as asked:
                launches += started(asked, work, work.inputs(CPU, random=False))[0]
        older, needs = (
            [ahead.compile_for(launch, capability) for launch in launches]
            for capability in (80, 90)
        )
        if any(need.shared > SHARED for need in needs):
            return None
        spilled = sum(need.stack for need in older + needs)
        return spilled, -sum(in_flight(need, launch.grid) for need, launch in zip(needs, launches))

    return rank


def in_flight(need: ahead.Resources, grid: tuple[int, ...]) -> float:
    """Bytes that the blocks on one SM ask for before the first of them arrives, if each thread runs
    all the loads of its program once."""
    resident = min(
        REGISTERS // (need.registers * need.threads),
        SHARED // max(need.shared, 1),
        THREADS // need.threads,
        BLOCKS,
    )
    return min(resident, torch.Size(grid).numel() / SMS) * need.threads * loaded(need.ptx)


def loaded(ptx: str) -> int:
    """Bytes of a thread's loads from global memory, as often as they stand in the text."""
    loads = re.findall(r"ld\.global\S*?(?:\.v(\d))?\.[bsuf](\d+)\s", ptx)
    return sum(int(count or 1) * int(bits) // 8 for count, bits in loads) + sum(
        int(size, 16) for size in re.findall(r"cp\.async\.c[ag]\S*\s[^;]*?\],\s*(0x[0-9a-f]+)", ptx)
    )


def best(
    name: str, tried: Iterable[Config], judge: Judge, refused: tuple[type[Exception], ...]
) -> tuple[Rank, Config] | None:
    """The config of the least rank, the first of equals; None if none can be used. refused: raised
    by one that cannot be compiled."""
    found = None
    for config in tried:
        try:
            rank = judge(name, config)
        except refused:
            continue
        if rank is not None and (found is None or rank < found[0]):
            found = rank, config
    return found


def tuned(
    name: str,
    works: Iterable[Work],
    judge: Callable[[Sequence[Work]], Judge],
    faster: Callable[[Work, Config], bool] | None = None,
    refused: tuple[type[Exception], ...] = (),
) -> list[dict]:
    """The entries of a file: the best candidate at each shape of the works, and what the file has
    for other shapes. faster: what to write as "faster" into the configs of COMPARED."""
    entries = {tuple(entry["shape"].items()): entry for entry in configs.entries(name)}
    for shape, of_shape in tqdm(shapes(name, works).items(), desc=name, unit="shape"):
        now = {
            key: value
            for key, value in configs.pick(name, **dict(shape)).items()
            if key != "faster"
        }
        found = best(name, candidates(name, now), judge(of_shape), refused)
        if found is None:
            raise RuntimeError(f"{name}: no candidate computes {of_shape[0]} rightly.")
        rank, config = found
        if faster and name == COMPARED:
            config = config | {"faster": all(faster(work, config) for work in of_shape)}
        entries[shape] = {
            "shape": dict(shape),
            "config": config,
            "rank": [round(value, 4) for value in rank],
        }
    return list(entries.values())


def write(name: str, machine: dict[str, str], entries: list[dict]) -> None:
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
    (configs.TUNED / f"{name}.json").write_text(
        f'{{"machine": {json.dumps(machine)},\n"entries": [\n{lines}\n]}}\n'
    )


def machine(device: torch.device | None) -> dict[str, str]:
    """device: None for none."""
    known = {name: version for name, version in versions().items() if name in ("torch", "triton")}
    known["date"] = datetime.date.today().isoformat()
    if device is None:
        return {"device": "not timed: compiled ahead of time for sm_90", **known}
    clocks = subprocess.run(
        ["nvidia-smi", "--query-gpu=clocks.sm,clocks.max.sm,clocks.mem", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return {"device": device_name(device), "clocks": clocks, **known}


def names() -> list[str]:
    return sorted(path.stem for path in configs.TUNED.glob("*.json"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.tune",
        description="Tries configs of the kernels and keeps the best.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; all if none is given"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="keep the best in kernels/tuned/NAME.json; else they are printed",
    )
    parser.add_argument(
        "--ahead",
        action="store_true",
        help="no GPU: rank by what the compiler says of binaries for sm_90",
    )
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.names) - set(names()):
        parser.error(
            f"no such file of configs: {', '.join(sorted(unknown))}; there are "
            f"{', '.join(names())}."
        )
    if not chosen.ahead and not torch.cuda.is_available():
        parser.error("there is no CUDA device to time on; --ahead ranks without one.")
    from triton.errors import TritonError

    device = None if chosen.ahead else torch.device("cuda")
    for name in chosen.names or names():
        if device is None:
            entries = tuned(name, workloads(), modelled, refused=(TritonError,))
        else:
            entries = tuned(
                name,
                workloads(),
                partial(timed, device=device),
                partial(faster_than_torch, device=device),
                (TritonError,),
            )
        if chosen.write:
            write(name, machine(device), entries)
        else:
            print(*(json.dumps(entry) for entry in entries), sep="\n")


if __name__ == "__main__":
    main()
