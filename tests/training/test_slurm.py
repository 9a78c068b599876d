"""On a real Slurm: cells of a sweep that are requeued in the middle end with the bits of runs that
nothing disturbed. Skipped where there is none. With the accounting of Slurm on (submitit reads
sacct), at least two CPUs; preemption needs partitions main and urgent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from tests.helpers import runs

LONGER = ["train.steps=400", "run.checkpoint_every=150"]
SLURM = [
    "hydra/launcher=slurm",
    "hydra.launcher.mem_gb=1",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.timeout_min=20",
]


def slurm(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def partitions() -> list[str]:
    try:
        return slurm("sinfo", "-h", "-o", "%R").split()
    except (OSError, subprocess.SubprocessError):
        return []


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not partitions(), reason="no Slurm: sinfo does not answer"),
]
DISTURBANCES = {
    "its time is up": ["scancel", "--signal=USR2", "{job}"],
    "requeued by hand": ["scontrol", "requeue", "{job}"],
    "preempted": [
        "sbatch",
        "-p",
        "urgent",
        "--exclusive",
        "-N",
        "{nodes}",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 3",
    ],
}


def until(condition, what: str, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.1)


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_cells_that_are_requeued_end_with_the_same_bits(disturbance, tmp_path, undisturbed):
    if disturbance == "preempted" and not {"main", "urgent"} <= set(partitions()):
        pytest.skip("no partitions main and urgent")
    where = ["hydra.launcher.partition=main"] if "main" in partitions() else []
    command = [
        sys.executable,
        "train.py",
        "-m",
        *runs.TINY,
        *LONGER,
        *SLURM,
        *where,
        f"run.root={tmp_path}/runs",
        f"run.cache={tmp_path}/cache",
        "transfer=full,norm_bias",
    ]
    driver = subprocess.Popen(
        command,
        cwd=runs.REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )

    def reached(step: int) -> bool:
        found = [runs.rows(p.parent) for p in tmp_path.glob("runs/custom/*/metrics.jsonl")]
        return len(found) == 2 and all(rows and rows[-1]["step"] >= step for rows in found)

    try:
        until(lambda: reached(30), "both cells train")
        job = slurm("squeue", "-h", "-o", "%F", "--name", "train").split()[0]
        nodes = len(set(slurm("sinfo", "-h", "-N", "-o", "%N").split()))
        slurm(*(part.format(job=job, nodes=nodes) for part in DISTURBANCES[disturbance]))
        text, _ = driver.communicate(timeout=200)
    finally:
        driver.kill()
    assert driver.returncode == 0, text
    assert text.count("finished, held-out loss") == 2, text
    printed = "".join(
        p.read_text() for p in sorted(tmp_path.glob("runs/custom/sweeps/*/slurm/*/*_log.out"))
    )
    resumed = [int(step) for step in re.findall(r"resuming at step (\d+)", printed)]
    # saved when the signal came
    assert len(resumed) >= 2 and all(step >= 30 and step % 150 for step in resumed), printed
    for transfer in ("full", "norm_bias"):
        (directory,) = tmp_path.glob(f"runs/custom/{transfer}-*")
        runs.assert_same_run(directory, undisturbed(*LONGER, f"transfer={transfer}"), 400)
