"""Writes the table and the presets of docs/strategies.md, from the files in conf/transfer and the
network of CelebA: python -m docs.make_strategies"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from config import overrides
from config.run_config import RunConfig
from training.config_checks import check_network

PAGE = Path(__file__).with_name("strategies.md")
ORDER = [
    "zero_shot", "scratch", "full",
    "freeze_encoder", "freeze_decoder", "middle_only",
    "freeze_high_resolution", "freeze_low_resolution",
    "attention_only", "norm_only", "bitfit", "norm_bias", "linear_probe",
    "time_embedding", "time_conditioning", "class_embedding", "textual_inversion",
    "lora", "locon", "svdiff", "difffit",
    "gradual_unfreezing", "discriminative_lr", "lp_ft",
    "l2_sp", "ewc", "feature_distillation", "pairwise_similarity",
    "dreambooth", "diff_tuning", "ant",
]  # fmt: skip
HEAD = r"(# @package .*\n)?# Trains: (.+)\n# Paper: (.+)\n#\n((?:# .+\n|#\n)+)([^#][\s\S]*)"
CELEBA = ["model=ddpm_celeba64", "data.size=64", "data.channels=3", "source.from=x"]


def read(name: str) -> tuple[str, str, str, str]:
    """A preset: what trains, the paper, the prose, the YAML."""
    found = re.fullmatch(HEAD, (overrides.CONF / f"transfer/{name}.yaml").read_text())
    if not found:
        raise SystemExit(
            f"conf/transfer/{name}.yaml must begin with the lines '# Trains: ...', "
            "'# Paper: ...' and '#', and then lines of prose."
        )
    package, trains, paper, prose, body = found.groups("")
    return trains, paper, re.sub("^# ?", "", prose, flags=re.M), package + body


def rates(rules: list[dict[str, Any]]) -> str:
    """The first and the last of many, one after the other in time, or by part of the network."""
    in_time = sorted(rules, key=lambda rule: "from" in rule)
    rated = [(r["pattern"].strip("*."), r.get("learning_rate_scale", 1)) for r in in_time]
    known = dict.fromkeys(rate for _, rate in rated if rate)
    if len(known) > 2:
        return f"{max(known):g} to {min(known):.2g}"
    if len(known) < 2 or any("from" in rule for rule in rules):
        return ", then ".join(f"{rate:g}" for rate in known) or "-"
    return ", ".join(f"{part} {rate:g}".strip() for part, rate in rated if rate)


def row(name: str) -> str:
    trains, paper, _, _ = read(name)
    config = overrides.composed("train", [*CELEBA, f"transfer={name}"])
    share = 100 * check_network(RunConfig(config).completed).share()
    digits = f"{share:#.3g}".rstrip(".") if share else "0"
    rate = rates(config["transfer"]["rules"])
    return f"| [{name}](#{name}) | {trains} | {digits} | {rate} | {paper} |\n"


def section(name: str) -> str:
    trains, paper, prose, body = read(name)
    return f"### {name}\nTrains {trains}. Paper: {paper}.\n\n{prose}```yaml\n{body}```\n"


def made(page: str) -> str:
    if wrong := set(ORDER) ^ set(overrides.options("transfer")):
        raise SystemExit(f"ORDER in {__file__} and conf/transfer differ in {sorted(wrong)}.")
    table = "| strategy | what trains | % | rate | paper |\n|---|---|---|---|---|\n"
    for part, text in {
        "table": table + "".join(map(row, ORDER)),
        "presets": "\n".join(map(section, ORDER)),
    }.items():
        start, end = f"<!-- {part}: written by make docs -->\n\n", f"\n<!-- end of {part} -->\n"
        before, rest = page.split(start)
        page = before + start + text + end + rest.split(end)[1]
    return page


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text()))
