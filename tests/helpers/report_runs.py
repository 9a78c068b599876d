"""Directories of runs and their evaluations, written by hand, for the tests of the report."""

from __future__ import annotations

import json
import os
from pathlib import Path

import yaml
from PIL import Image

from metrics.estimate import GRID, VERSION

RESULT = {
    "step": 300,
    "trained_parameters": 50,
    "parameters": 2000,
    "trained_share": 0.025,
    "held_out_loss": 0.07,
    "held_out_grid": GRID,
    "ema_share_of_start": 0.05,
    "hours": 1.5,
    "device": "NVIDIA H100",
    "peak_memory_bytes": 3_400_000_000,
    "bytes_to_store": 12_345,
    "source_sha256": None,
}


def write_run(
    folder: Path, strategy: str, seed: int = 0, color=None, settings=None, include=("*",), **result
) -> Path:
    """A run's directory as train.py leaves it. result: what differs from RESULT; none at all is a
    run that has no result yet."""
    config = {
        "seed": seed,
        "transfer": {"name": strategy, "rules": [{"pattern": strategy}]},
        "optimizer": {"lr": 0.001},
        "data": {"n_train": None},
        "source": {"include": list(include)},
        "train": {"steps": 300},
        "run": {"root": str(seed)},
    }
    for path, value in (settings or {}).items():
        section, key = path.split(".")
        config[section][key] = value
    directory = folder / f"{strategy}-seed{seed}-{len(list(folder.glob('*')))}"
    (directory / "samples").mkdir(parents=True)
    (directory / "identity.json").write_text(json.dumps(config | {"train": {}}))
    if result:
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        (directory / "result.json").write_text(json.dumps(RESULT | result))
    if color:
        for step, shade in ((100, "black"), (300, color)):
            Image.new("RGB", (50, 50), shade).save(directory / f"samples/samples_{step:07d}.png")
    return directory


def estimate(value: float, half: float = 0.001, replicates=None) -> dict:
    replicates = (
        [value + half * (k / 100 - 1) for k in range(201)]
        if replicates is None
        else list(replicates)
    )
    return {
        "value": value,
        "low": value - half,
        "high": value + half,
        "replicates": replicates,
        "images": 413,
    }


def evaluation(
    kid=0.02,
    rho=1.0,
    copies=0.0,
    c_t=0.0,
    forgot=0.01,
    n=500,
    features="random",
    replicates=None,
    step=300,
    loss=0.08,
) -> dict:
    """loss: on test images; None for an evaluation that has none, so that KID is what ranks."""
    return {
        "version": VERSION,
        "arguments": [f"n={n}", "sampler.steps=50", "metrics=[quality,loss]"],
        "protocol": {
            "n": n,
            "seed": 0,
            "sampler": {"steps": 50},
            "label": None,
            "weights": "ema",
            "select": "best",
            "held_out": "test",
            "features": {"kind": features},
        },
        "features": {
            "name": f"{features} features in full",
            "short": features,
            "frechet": f"Fréchet distance ({features})",
        },
        "checkpoint": {"path": "x", "step": step, "sha256": "0"},
        "images": {"folder": "x", "n": n, "train": 100, "test": 413},
        "quality": {
            "test": {
                "kid": estimate(kid, replicates=replicates),
                "frechet": 12.5,
                "precision": 0.5,
                "recall": 0.4,
                "density": 0.6,
                "coverage": 0.3,
            },
            "train": {"kid": estimate(kid / 2)},
        },
        "memorization": {
            "features": {"rho": estimate(rho, 0.02), "c_t": c_t},
            "pixels": {"copy_share": estimate(copies, 0.0)},
        },
        "loss": (
            {}
            if loss is None
            else {
                "target": {
                    "loss": estimate(loss),
                    "by_decile": [0.5, None, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
                }
            }
        )
        | {
            "source": {"loss": estimate(0.06 + forgot), "by_decile": [0.4] * 10},
            "source_start": {"loss": estimate(0.06), "by_decile": [0.3] * 10},
            "source_change": estimate(forgot),
        },
        "bound": {
            "bits": estimate(4.1),
            "prior": 0.001,
            "images": 16,
            "terms": [{"t": 1, "steps": 1, "bits": 2.0}, {"t": 100.5, "steps": 50, "bits": 0.1}],
        },
        "membership": {
            "auc": estimate(0.62, 0.04),
            "by_decile": [0.5, 0.55, 0.6, 0.7, 0.7, 0.65, 0.6, 0.55, 0.5, 0.5],
            "source": {"auc": estimate(0.52, 0.04), "by_decile": [0.52] * 10},
            "excess": estimate(0.1, 0.03),
        },
        "classification": {
            "real": estimate(0.81, 0.03),
            "synthetic": estimate(0.74, 0.03),
            "both": estimate(0.86, 0.03),
            "gain": estimate(0.05, 0.02),
        },
        "forgetting": {"weights": {"conv_in": 0.1, "mid": 0.0, "conv_out": 0.25}},
        "baselines": {
            "memoriser": {
                "quality": {"test": {"kid": estimate(0.005)}},
                "memorization": {"features": {"rho": estimate(0.0)}},
            }
        },
        "notes": ["FID is left out: 413 test images, it needs 2,000"],
        "hours": 0.01,
        "device": "cpu (Xeon, AVX512)",
        "threads": 2,
        "python": "3.11",
        "commit": "0",
        "packages": {"torch": "2.13", "wandb": "absent"},
    }


def write_evaluation(
    directory: Path, content: dict, name: str = "default", age: float = 0.0
) -> Path:
    """age: in seconds."""
    path = directory / "evaluation" / name / "evaluation.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    os.utime(path, (1_700_000_000 - age,) * 2)
    return path


def evaluated(
    folder: Path,
    strategy: str,
    seed: int = 0,
    settings=None,
    include=("*",),
    result=None,
    **numbers,
) -> Path:
    """A finished run with its evaluation."""
    directory = write_run(
        folder,
        strategy,
        seed,
        settings=settings,
        include=include,
        **{"held_out_loss": 0.07} | (result or {}),
    )
    write_evaluation(directory, evaluation(**numbers))
    return directory
