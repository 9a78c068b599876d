"""Shows that a change of the code changed no number: the same commands with two versions of it.

    python -m benchmarks.same_numbers BASE [--quick] [--keep DIR]

BASE is a git ref or the folder of a checkout; it is compared with the folder that this starts in.
Each version runs the commands in a folder of its own, on one core, and what they leave is compared:
tensors, pixels, metrics and plans to the bit, the statistics of evaluations to a relative 1e-12,
and the names of runs, which are hashes of their identity. Clock, machine, paths and sentences are
left out. A run that a signal ended and the same command continued has to equal the undisturbed
one. The commands are also given on a copy of what BASE left, which they have to find done, under
its names. Exit code 1 where anything differs. Nothing of the project is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from PIL import Image

TOLERANCE = 1e-12  # of the statistics of an evaluation, relative
PATIENCE = 1800  # seconds that a command may take
SAVED = 75  # exit code of a run that was asked to stop
LEFT_OUT = {
    "hours",
    "seconds",
    "images_per_second",  # the clock
    "device",
    "peak_memory_bytes",
    "commit",
    "threads",
    "python",
    "platform",
    "packages",
    "_target_",
    "arguments",  # names in the code, and of settings
    "sha256 of the rest",  # of all of these
}
RENAMED = {"floors": "baselines"}  # keys of JSON files, of then and of now
HASH = re.compile(r"[-_]([0-9a-f]{8})$")  # at the end of a folder's name
Values = dict[str, Any]


class Command(NamedTuple):
    """A script of the project with its arguments, in which * stands for the hash of a run's name.
    stop: the signal that first ends it, after a checkpoint in the folder of the signal's name."""

    name: str
    words: Sequence[str]
    stop: signal.Signals | None = None


# --- the commands --------------------------------------------------------------------------------

PRETRAIN = ["train.py", "+experiment=pretrain_demo"]
TRANSFER = ["train.py", "+experiment=transfer_demo"]
SMALL = ["train.batch_size=8", "run.held_out_draws=32", "run.samples=4", "sampler.steps=4"]
SHORT_SOURCE = ["train.steps=40", *SMALL]
TWENTY = [
    "train.steps=20",
    *SMALL,
    "seed=1",
    "model.dropout=0.1",
    "run.checkpoint_every=10",
    "run.keep_last=1",
    "run.log_every=5",
]
STRATEGIES = {  # each with settings that make it quick, or that no other run has
    "full": ["run.kid_images=12"],
    "lora": ["optimizer=adamw", "optimizer.lr=2e-3", "optimizer.weight_decay=0.1"],
    "svdiff": ["train.accumulation=2"],
    "difffit": [],
    "ewc": [
        "transfer.penalties.0.n=16",
        "transfer.penalties.0.images.n=16",
        "transfer.penalties.0.images.steps=5",
    ],
    "l2_sp": [],
    "feature_distillation": [],
    "pairwise_similarity": [],
    "dreambooth": ["transfer.replay.images.n=16", "transfer.replay.images.steps=5"],
    "textual_inversion": [],
    "ant": [
        "transfer.loss.images.n=16",
        "transfer.loss.images.steps=5",
        "transfer.loss.classifier_steps=5",
        "transfer.loss.ascent_steps=2",
    ],
    "gradual_unfreezing": [],
    "diff_tuning": ["transfer.replay.images.n=16", "transfer.replay.images.steps=5"],
}
STOPPED = {"diff_tuning": signal.SIGTERM, "gradual_unfreezing": signal.SIGKILL}
LORA = "checkpoint=runs/transfer_demo/lora-seed1-*"
USES = {
    # of fewer than 50 some metrics are left out
    "evaluate": [
        "evaluate.py",
        LORA,
        "n=52",
        "sampler.steps=5",
        "held_out_draws=64",
        "bound_images=2",
        "bound_steps=10",
    ],
    "sample, domain guidance": [
        "sample.py",
        LORA,
        "n=4",
        "sampler.steps=5",
        "guidance=1.5",
        "reference=source",
        "out=guided",
    ],
    "sample, all classes": [
        "sample.py",
        "checkpoint=runs/transfer_demo/dreambooth-seed1-*",
        "n=12",
        "sampler.steps=5",
        "label=all",
        "out=classes",
    ],
    "evaluate, folders": [
        "evaluate.py",
        "images=classes",
        "train=guided",
        "test=classes",
        "out=of_folder",
    ],
    "export, folder": ["export.py", LORA, "out=exported"],
    "export, small": ["export.py", LORA, "out=exported.safetensors"],
}
# an export replaces nothing, and a folder of images is known by its path
ONCE = ("evaluate, folders", "export, folder", "export, small")


def commands(quick: bool) -> list[Command]:
    """All of them, each after those whose output it needs."""
    first, twenty = {"pretrain_demo": PRETRAIN}, [*TRANSFER, *TWENTY]
    if quick:
        first = {"pretrain_demo, short": [*PRETRAIN, *SHORT_SOURCE]}
        twenty.append("source.overrides=" + json.dumps(SHORT_SOURCE, separators=(",", ":")))
    else:
        first |= {f"transfer_demo, {s}": [*TRANSFER, f"transfer={s}"] for s in ("full", "scratch")}
    runs = {name: [*twenty, f"transfer={name}", *more] for name, more in STRATEGIES.items()}
    stopped = [
        Command(f"{name}, {by.name}", [*runs[name], f"run.directory={by.name}"], by)
        for name, by in STOPPED.items()
    ]
    return [
        *(Command(*item) for item in (first | runs).items()),
        *stopped,
        *(Command(*item) for item in USES.items()),
    ]


def run_all(
    todo: Sequence[Command], tree: Path, out: Path, title: str, onto: Path | None = None
) -> dict[str, int]:
    """Runs the commands of tree's code in the folder out, made anew, or begun as a copy of onto.
    Returns their exit codes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    codes = {}
    with open(f"{out}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"error: another process writes {out}: wait for it, or give another --keep")
        shutil.rmtree(out, ignore_errors=True)
        if onto:
            shutil.copytree(onto, out)
        (out / "logs").mkdir(parents=True, exist_ok=True)
        for k, command in enumerate(todo, 1):
            began = time.monotonic()
            log = out / "logs" / f"{command.name.replace(', ', '_').replace(' ', '_')}.txt"
            codes[command.name] = code = _run(command, tree, out, log)
            end = f"failed with {code}: {log}" if code else f"{time.monotonic() - began:6.1f} s"
            print(f"{title}  {k:>2}/{len(todo)}  {command.name:<30}{end}", flush=True)
    return codes


def _run(command: Command, tree: Path, out: Path, log: Path) -> int:
    """Its exit code; 1 where the signal did not end it."""
    script, *arguments = command.words
    words = [sys.executable, str(tree / script), *(_expanded(word, out) for word in arguments)]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(log, "w") as printed:
        for by in (command.stop, None) if command.stop else (None,):
            process = subprocess.Popen(
                words, cwd=out, env=settings, stdout=printed, stderr=subprocess.STDOUT
            )
            try:
                if by:
                    _stop(process, by, out / by.name)
                code = process.wait(PATIENCE)
            finally:
                process.kill()
            if by and code not in (-by, SAVED):
                printed.write(f"{by.name} did not end it: exit code {code}\n")
                return 1
    return code


def _stop(process: subprocess.Popen[bytes], by: signal.Signals, directory: Path) -> None:
    """Sends the signal after the first checkpoint."""
    while process.poll() is None and not any(directory.glob("checkpoints/step_*")):
        time.sleep(0.01)
    process.send_signal(by)


def _expanded(word: str, out: Path) -> str:
    """With the one folder that a * means; as it is where there is none, which the command says."""
    key, equals, pattern = word.partition("=")
    found = list(out.glob(pattern)) if pattern.endswith("*") else []
    return f"{key}{equals}{found[0].relative_to(out)}" if len(found) == 1 else word


# --- what they leave -----------------------------------------------------------------------------


def _tensors(path: Path) -> Values:
    return {name: _digest(tensor) for name, tensor in safetensors.torch.load_file(path).items()}


def _optimizer(path: Path) -> Values:
    leaves = flattened(torch.load(path, weights_only=True))
    return {k: _digest(v) if isinstance(v, torch.Tensor) else v for k, v in leaves.items()}


def _digest(tensor: torch.Tensor) -> str:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(data).hexdigest()}"


def _pixels(path: Path) -> Values:
    return {"pixels": _digest(torch.from_numpy(np.array(Image.open(path))))}


def _json(path: Path) -> Values:
    return flattened(json.loads(path.read_text()))


def _rows(path: Path) -> Values:
    return flattened([json.loads(line) for line in path.read_text().splitlines()])


def _table(path: Path) -> Values:
    with open(path, newline="") as file:
        return flattened(list(csv.reader(file)))


def flattened(node: Any, path: str = "") -> Values:
    """Path -> leaf, without LEFT_OUT and without text that is a path or a sentence."""
    if isinstance(node, dict):
        parts = [(RENAMED.get(k, k), value) for k, value in node.items() if k not in LEFT_OUT]
    elif isinstance(node, list | tuple):
        parts = list(enumerate(node))
    else:
        return {} if isinstance(node, str) and re.search(r"[/\s]", node) else {path: node}
    leaves: Values = {}
    for key, value in parts:
        leaves |= flattened(value, f"{path}.{key}".lstrip("."))
    return leaves


NAMES, STATISTICS = "names of folders", "evaluation.json"
KINDS: dict[str, tuple[str, Callable[[Path], Values]]] = {  # the first pattern that fits
    "model.safetensors": ("weights", _tensors),
    "ema.safetensors": ("EMA weights", _tensors),
    "optimizer.pt": ("optimizer", _optimizer),
    "*.safetensors": ("exported weights", _tensors),
    "*.png": ("pictures", _pixels),
    "metrics.jsonl": ("metrics", _rows),
    "result.json": ("result.json", _json),
    "evaluation.json": (STATISTICS, _json),
    "source.json": ("source.json", _json),
    "plan.csv": ("plan.csv", _table),
}


class Artefact(NamedTuple):
    """What a file holds, by the path of each leaf. kind: the row of the table that counts it."""

    kind: str
    values: Values


def artefacts(below: Path) -> dict[str, Artefact]:
    """By path, without the hashes in the names of folders, which are artefacts of their own."""
    found: dict[str, Artefact] = {}
    for path in sorted(below.rglob("*")):
        parts = path.relative_to(below).parts
        if parts[0] in ("cache", "logs"):
            continue
        key = "/".join(HASH.sub("", part) for part in parts)
        kind = next((kind for pattern, kind in KINDS.items() if path.match(pattern)), None)
        if path.is_dir() and (hashed := HASH.search(path.name)):
            found[f"name of {key}"] = Artefact(NAMES, {"hash": hashed[1]})
        elif kind:
            if key in found:  # of two runs that differ in their hashes alone
                key = f"{key}, again"
            found[key] = Artefact(kind[0], kind[1](path))
    return found


# --- the comparison ------------------------------------------------------------------------------


def difference(before: Artefact | None, after: Artefact | None) -> str | None:
    """How two artefacts of one name differ, or None."""
    if before is None or after is None:
        return "only before" if before else "only after"
    old, new = before.values, after.values
    keys = [
        key
        for key in {**old, **new}
        if not _same(old.get(key, "absent"), new.get(key, "absent"), before.kind == STATISTICS)
    ]
    if not keys:
        return None
    first = " -> ".join(str(values.get(keys[0], "absent")) for values in (old, new))
    return f"{len(keys)} of {len({**old, **new})} values, the first {keys[0]}: {first}"


def _same(old: Any, new: Any, statistic: bool) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        close = statistic and math.isclose(old, new, rel_tol=TOLERANCE)
        return close or old == new or (math.isnan(old) and math.isnan(new))
    return type(old) is type(new) and old == new


def report(title: str, before: dict[str, Artefact], after: dict[str, Artefact]) -> int:
    """A line for each artefact that differs, and a table. Returns how many differ."""
    if not before:
        sys.exit(f"error: {title}: the commands left nothing to compare")
    counts: dict[str, list[int]] = {}
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        kind, values = one or other  # type: ignore[misc]
        differs = difference(one, other)
        row = counts.setdefault(kind, [0, 0, 0])
        counts[kind] = [row[0] + 1, row[1] + len(values), row[2] + bool(differs)]
        if differs:
            print(f"differs: {name}: {differs}")
    print(f"\n{title:<50}{'artefacts':>10}{'values':>10}{'differ':>10}")
    for kind, row in counts.items():
        print(f"  {kind:<48}" + "".join(f"{n:>10}" for n in row))
    return sum(row[2] for row in counts.values())


def continued(out: Path) -> tuple[dict[str, Artefact], dict[str, Artefact]]:
    """The undisturbed runs, and those that were stopped and continued."""
    undisturbed: dict[str, Artefact] = {}
    for strategy, by in STOPPED.items():
        (run,) = out.glob(f"runs/*/{strategy}-seed1-*")
        undisturbed |= {f"{by.name}/{name}": found for name, found in artefacts(run).items()}
    names = {by.name for by in STOPPED.values()}
    return undisturbed, {k: v for k, v in artefacts(out).items() if k.split("/")[0] in names}


# --- the two versions ----------------------------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def checkout(commit: str, repository: Path) -> Iterator[Path]:
    """A temporary worktree."""
    with tempfile.TemporaryDirectory() as parent:
        tree = Path(parent) / "base"
        git(repository, "worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git(repository, "worktree", "remove", "--force", str(tree))


def outputs_of(base: str, todo: Sequence[Command], here: Path, keep: Path, tag: str) -> Path:
    """The outputs of BASE: those that are kept, where it is a commit."""
    if Path(base).is_dir():
        out = keep / f"folder-{tag}"
        codes = run_all(todo, Path(base).resolve(), out, "base")
    else:
        commit = git(here, "rev-parse", "--verify", f"{base}^{{commit}}")
        out = keep / f"{commit}-{tag}"
        if (out / "finished").exists():
            print(f"base  kept in {out}")
            return out
        with checkout(commit, here) as tree:
            codes = run_all(todo, tree, out, "base")
    if any(codes.values()):
        sys.exit(f"error: {base} fails itself, so there is nothing to compare with: {out / 'logs'}")
    (out / "finished").touch()
    return out


def compare(base: str, here: Path, keep: Path, quick: bool) -> int:
    """How many artefacts and commands differ."""
    todo = commands(quick)
    listed = hashlib.sha256(json.dumps(todo).encode()).hexdigest()[:8]
    tag = f"{'quick' if quick else 'all'}-{listed}"
    before, after = outputs_of(base, todo, here, keep, tag), keep / f"here-{here.name}-{tag}"
    codes = run_all(todo, here, after, "here")
    failed = [name for name, code in codes.items() if code]
    count = report(f"{base} and here", artefacts(before), artefacts(after))
    count += report(f"{base}: undisturbed, and stopped and continued", *continued(before))
    # what was done with BASE is known to be done, under the same names
    again = [command._replace(stop=None) for command in todo if command.name not in ONCE]
    onto = keep / f"onto-{here.name}-{tag}"
    lost = [name for name, code in run_all(again, here, onto, "onto", before).items() if code]
    title = f"{base}, and the same commands here on its output"
    count += report(title, artefacts(before), artefacts(onto))
    if lost:
        print(f"\nfailed on the output of {base}: {', '.join(lost)}; see {onto / 'logs'}")
    if failed:
        print(f"\nfailed here, and not in {base}: {', '.join(failed)}; see {after / 'logs'}")
    else:
        count += report("here: undisturbed, and stopped and continued", *continued(after))
    count += len(failed) + len(lost)
    print(f"\n{count} differ" if count else "\nall the same")
    return count


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Shows that a change of code changed no number.")
    parser.add_argument("base", help="a git ref, or the folder of a checkout")
    parser.add_argument("--quick", action="store_true", help="leave the demo's own three runs out")
    parser.add_argument("--keep", type=Path, help="where outputs go; those of BASE are used again")
    chosen = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        keep = (chosen.keep or Path(folder)).resolve()
        return int(compare(chosen.base, Path.cwd(), keep, chosen.quick) > 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree is removed
    sys.exit(main())
