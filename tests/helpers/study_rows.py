"""Lines of study/runs.csv that are made up."""

from __future__ import annotations


def rows(target="faces", n=10, repeats=5, step=20, **losses):
    """Lines of study/runs.csv: strategy -> its losses by repetition."""
    lines = []
    for name, values in losses.items():
        for k in range(repeats):
            minus = "" if name == "full" else values[k] - losses["full"][k]
            lines.append(
                {
                    "images": target,
                    "at_hand": str(n),
                    "strategy": name,
                    "size": "",
                    "repeat": str(k),
                }
                | {
                    "trained_on": "5",
                    "rate": "0.001",
                    "base_rate": "0.001",
                    "step": str(step),
                    "steps": "100",
                    "loss": str(values[k]),
                }
                | {"minus_reference": str(minus), "minus_reference_sd": "0" if minus else ""}
            )
    return lines
