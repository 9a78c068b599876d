"""The offline tuner: `python -m kernels.tune [--write] [--ahead] [NAME ...]` tries configs for
kernels/tuned/NAME.json (all of them, if none is named) at the shapes of kernels.workloads, and
--write keeps the best of each.

On a CUDA device the least median time wins, from a cold L2 cache, among those whose results are
right. --ahead needs no GPU: what the compiler says of a binary for an H100 decides, no spilled
register first, then the most bytes in flight on an SM. That is a model and no measurement, and the
file says so.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import re
import statistics
import subprocess
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import itemgetter

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

Config = dict[str, int]
Shape = tuple[tuple[str, int], ...]  # (key, value) of those that a config is for
Rank = tuple[float, ...]  # the least is the best
Judge = Callable[[str, Config], "Rank | None"]  # (name, config); None: not to be used
Bench = Callable[[Callable[[], object]], float]


def candidates(name: str, now: Config) -> list[Config]:
    """The present config, and all combinations of CANDIDATES."""
    axes = next((axes for start, axes in CANDIDATES.items() if name.startswith(start)), {})
    combined = [now | dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    return [now, *(config for config in combined if config != now)]


def shapes(name: str, works: Iterable[Work]) -> dict[Shape, list[Work]]:
    """The shapes for which a config of this name is asked, and the first work of each batch size
    that asks for them."""
    found: dict[Shape, dict[int, Work]] = {}
    for work in works:
        with configs.using(name, configs.entries(name)[0]["config"]) as asked:
            work.launches()
        for shape in asked:
            found.setdefault(tuple(shape.items()), {}).setdefault(work.batch, work)
    return {shape: list(of_batch.values()) for shape, of_batch in found.items()}


def of_pass(name: str, launches: Iterable[Launch]) -> list[Launch]:
    """Those of the pass, forward or backward, that a config of this name is for."""
    backward = "backward" in name
    return [launch for launch in launches if ("backward" in launch.kernel.__name__) == backward]


def run_all(launches: Iterable[Launch]) -> None:
    for launch in launches:
        launch.run()


def median_ms(run: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(run, return_mode="median")


def drawn(work: Work, device: torch.device) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """Inputs on a device, weights of the outputs, and what the results should be."""
    inputs = work.inputs(device)
    exact = {
        name: x.detach().float().requires_grad_() if x.is_floating_point() else x
        for name, x in inputs.items()
    }
    weights = work.weights(work.forward(work.judge(), exact))
    expected = work.results(work.judge(), exact, [weight.float() for weight in weights])
    return inputs, weights, expected


def timed(works: Iterable[Work], device: torch.device, bench: Bench) -> Judge:
    """Ranks by the time of the launches in ms, the geometric mean over the works."""
    torch.manual_seed(0)
    cases = [(work, *drawn(work, device)) for work in works]

    def rank(name: str, config: Config) -> Rank | None:
        times = []
        for work, inputs, weights, expected in cases:
            with configs.using(name, config), watched() as launches:
                found = work.results(work.fused(), inputs, weights)
            if not all(map(close, found, expected)):
                return None
            times.append(bench(partial(run_all, of_pass(name, launches))))
        return (statistics.geometric_mean(times),)

    return rank


def close(result: Tensor, expected: Tensor) -> bool:
    error = (result.float() - expected).abs().max()
    # False where the error is no number
    return bool(error <= TOLERANCE[result.dtype] * expected.abs().max())


def faster_than_torch(work: Work, config: Config, device: torch.device, bench: Bench) -> bool:
    inputs = work.inputs(device)
    with configs.using(COMPARED, config):
        return all(
            bench(partial(run, work.fused(), inputs)) < bench(partial(run, work.judge(), inputs))
            for run in (work.forward, work.results)
        )


def modelled(works: Iterable[Work]) -> Judge:
    """Ranks by (bytes of spilled registers on sm_80 and sm_90, - bytes in flight on an SM of
    sm_90), summed over the launches."""

    def rank(name: str, config: Config) -> Rank | None:
        with configs.using(name, config):
            launches = [launch for work in works for launch in of_pass(name, work.launches())]
        older = [ahead.compile_for(launch, 80) for launch in launches]
        needs = [ahead.compile_for(launch, 90) for launch in launches]
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


def tuned(
    name: str, works: Iterable[Work], device: torch.device | None, bench: Bench = median_ms
) -> list[dict]:
    """The entries of a file: the best candidate at each shape of the works, the first of equals,
    and what the file has for other shapes. device: see machine()."""
    from triton.errors import TritonError

    entries: dict[Shape, dict] = {
        tuple(entry["shape"].items()): entry for entry in configs.entries(name)
    }
    for shape, of_shape in tqdm(shapes(name, works).items(), desc=name, unit="shape"):
        now = configs.pick(name, **dict(shape))
        now.pop("faster", None)
        judge = timed(of_shape, device, bench) if device else modelled(of_shape)
        ranked = []
        for config in candidates(name, now):
            with contextlib.suppress(TritonError):  # one that cannot be compiled
                if rank := judge(name, config):
                    ranked.append((rank, config))
        if not ranked:
            raise RuntimeError(f"{name}: no candidate computes {of_shape[0]} rightly.")
        rank, config = min(ranked, key=itemgetter(0))
        if device and name == COMPARED:
            faster = all(faster_than_torch(work, config, device, bench) for work in of_shape)
            config = config | {"faster": faster}
        rounded = [round(value, 4) for value in rank]
        entries[shape] = {"shape": dict(shape), "config": config, "rank": rounded}
    return list(entries.values())


def write(name: str, machine: dict[str, str], entries: list[dict]) -> None:
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
    (configs.TUNED / f"{name}.json").write_text(
        f'{{"machine": {json.dumps(machine)},\n"entries": [\n{lines}\n]}}\n'
    )


def machine(device: torch.device | None) -> dict[str, str]:
    """device: the one that is timed; None: ahead of time."""
    known = {name: versions()[name] for name in ("torch", "triton")}
    known["date"] = datetime.date.today().isoformat()
    if device is None:
        return {"device": "not timed: compiled ahead of time for sm_90", **known}
    query = "--query-gpu=clocks.sm,clocks.max.sm,clocks.mem"
    clocks = subprocess.check_output(["nvidia-smi", query, "--format=csv,noheader"], text=True)
    return {"device": device_name(device), "clocks": clocks.strip(), **known}


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
    device = None if chosen.ahead else torch.device("cuda")
    for name in chosen.names or names():
        entries = tuned(name, workloads(), device)
        if chosen.write:
            write(name, machine(device), entries)
        else:
            print(*(json.dumps(entry) for entry in entries), sep="\n")


if __name__ == "__main__":
    main()
