"""Every benchmark runs on a CPU at a tiny size, and its CSV has what stands behind a row."""

import csv
import subprocess
import sys
import types

import pytest
import torch

import runtime.torchvision  # noqa: F401  before any peer that imports torchvision
from tests.helpers import ROOT

# isort: split
from benchmarks import common, kernels, networks, operations, sampling, spacing, unet

MACHINE = {
    "device",
    "driver",
    "threads",
    "torch",
    "triton",
    "diffusers",
    "denoising-diffusion-pytorch",
    "commit",
}
TINY = ["--model", "demo", "--batch", "1", "--device", "cpu", "--threads", "1"]
CPU = torch.device("cpu")


def rows_of(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and rows[0].keys() >= MACHINE | set(common.CLOCKS)
    assert all(
        row["torch"] == torch.__version__
        and row["diffusers"] != "absent"
        and row["device"].startswith("cpu")
        for row in rows
    )
    return rows


def test_unet(tmp_path, capsys, monkeypatch):
    absent(monkeypatch, "denoising_diffusion_pytorch")
    unet.main([*TINY, "--pairs", "1", "--csv", str(tmp_path / "unet.csv")])
    rows = rows_of(tmp_path / "unet.csv")
    assert [(row["mode"], row["implementation"], row["layout"]) for row in rows] == [
        (mode, name, layout)
        for mode in ("training", "forward")
        for name, layout in (
            ("ours", "channels_last"),
            ("diffusers", "NCHW"),
            ("diffusers", "channels_last"),
        )
    ]
    for row in rows:
        assert row["precision"] == "fp32" and row["parameters"] == "2736099"
        assert float(row["images/s"]) == pytest.approx(1 / float(row["median s"]), rel=2e-3)
    ratio = float(rows[1]["ours over this (median, min, max)"].split()[0])
    assert ratio == pytest.approx(float(rows[1]["median s"]) / float(rows[0]["median s"]), rel=2e-2)
    printed = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("denoising-diffusion-pytorch is not installed here") for line in printed
    )
    assert printed[-1].startswith("demo")  # the table comes last


@pytest.mark.slow
def test_spacing(undisturbed, tmp_path, monkeypatch):
    """Differences to log_snr, whose own is 0."""
    run = undisturbed()
    monkeypatch.chdir(tmp_path)  # for its cache
    spacing.main(
        [
            "--run",
            str(run),
            "--n",
            "4",
            "--steps",
            "3",
            "--sampler",
            "ddim",
            "--spacing",
            "log_snr,even",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--csv",
            "spacing.csv",
        ]
    )
    with open("spacing.csv", newline="") as file:
        ours, other = csv.DictReader(file)
    assert (ours["spacing"], other["spacing"]) == ("log_snr", "even") and float(
        ours["less log_snr"]
    ) == float(ours["its high"]) == 0
    assert float(other["less log_snr"]) == pytest.approx(
        float(other["KID"]) - float(ours["KID"]), abs=2e-4
    )


@pytest.mark.parametrize(
    ("benchmark", "more"),
    [(unet, ["--mode", "forward"]), (sampling, ["--sampler", "ddim", "--steps", "2"])],
)
def test_what_is_called_compiled_is_compiled_at_every_batch(benchmark, more, monkeypatch):
    """torch compiles a function for so many shapes and then runs it as it stands: such a row would
    time the wrong thing."""
    compiled, compile, settings = [], torch.compile, networks.settings

    def backend(graph, inputs):
        compiled.append(1)
        return graph

    absent(monkeypatch, "diffusers")
    absent(monkeypatch, "denoising_diffusion_pytorch")
    # its compilation takes a while
    small = {
        "multipliers": [1],
        "blocks": 1,
        "attention_levels": [0],
    }
    monkeypatch.setattr(networks, "settings", lambda model: settings(model) | small)
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, **options: compile(function, backend=backend, fullgraph=True, **options),
    )
    with torch._dynamo.config.patch(recompile_limit=1):
        benchmark.main([*TINY, *more, "--batch", "1,2", "--pairs", "1", "--compile"])
    assert len(compiled) == 2


def test_sampling(tmp_path, capsys):
    sampling.main([*TINY, "--pairs", "1", "--steps", "2", "--csv", str(tmp_path / "sampling.csv")])
    rows = rows_of(tmp_path / "sampling.csv")
    assert {row["sampler"] for row in rows} == {"ancestral", "ddim"} and {
        row["steps"] for row in rows
    } == {"2"}
    assert [row["implementation"] for row in rows[:3]] == [
        "ours",
        "diffusers",
        "diffusers channels_last",
    ]
    assert "Trajectories cut to at most 2 steps" in capsys.readouterr().out


def test_kernels(tmp_path):
    kernels.main(
        [
            "--tiny",
            "--compile",
            "no",
            "--repeats",
            "2",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--csv",
            str(tmp_path / "k.csv"),
        ]
    )
    rows = rows_of(tmp_path / "k.csv")
    names = {
        case.name
        for case in [*operations.norm_cases(CPU, True), *operations.attention_cases(CPU, True)]
    }
    assert {(row["operation"], row["pass"]) for row in rows} == {
        (name, which) for name in names for which in ("forward", "backward")
    }
    assert all(row["median us"].replace(".", "").isdigit() for row in rows)
    for row in rows:  # GB/s are the bytes of the formula over the median; both have one decimal
        moved = int(row["must move"][0]) * 4 * torch.Size(map(int, row["shape"].split("x"))).numel()
        median, half = float(row["median us"]), 0.0501
        low, high = moved / (median + half) / 1e3 - half, moved / (median - half) / 1e3 + half
        assert low <= float(row["GB/s"]) <= high


@pytest.mark.parametrize("name", ["kernels", "unet", "sampling"])
def test_each_is_a_command(name):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0 and "--csv" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "case",
    [*operations.norm_cases(CPU, False), *operations.attention_cases(CPU, True)],
    ids=lambda case: case.name,
)
def test_the_implementations_compute_the_same(case):
    """All that are timed against each other; a dropout draws its own zeros."""
    tiny = (
        case._replace(shape=(2, 128 if case.name == "group_norm_act_cat" else 64, 4, 4))
        if not case.heads
        else case
    )
    results = {
        name: function(*inputs)
        for name, (function, inputs) in operations.implementations(
            tiny, torch.float32, CPU, False
        ).items()
    }
    first = results.pop("ours")
    for name, result in results.items():
        for a, b in zip(
            *(r if isinstance(r, tuple) else (r,) for r in (first, result)), strict=True
        ):
            if case.variant != "dropout":
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=name)
            else:
                both = (a != 0) & (b != 0)
                assert both.any()
                torch.testing.assert_close(a[both], b[both], rtol=1e-5, atol=1e-5, msg=name)


def test_apex_is_timed_where_it_is_installed(monkeypatch):
    """By its documented interface, which nothing here can run: a stand-in on the CPU."""
    case = operations.Case("group_norm_act", (2, 64, 4, 4), operations.PLAIN)
    assert "apex" not in operations.implementations(case, torch.float32, CPU, False)

    class GroupNorm(torch.nn.GroupNorm):
        def __init__(self, num_groups, num_channels, eps, device, act):
            super().__init__(num_groups, num_channels, eps, device=device)
            assert act == "silu"

        def forward(self, x):
            assert x.is_contiguous(memory_format=torch.channels_last)
            return torch.nn.functional.silu(super().forward(x))

    for name in ("apex", "apex.contrib", "apex.contrib.group_norm"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["apex.contrib.group_norm"].GroupNorm = GroupNorm
    found = operations.implementations(case, torch.float32, CPU, False)
    ours, theirs = (found[name][0](*found[name][1]) for name in ("ours", "apex"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_network_that_says_something_else_is_not_timed():
    diffusers = pytest.importorskip("diffusers")
    model = networks.MODELS["demo"]
    network = networks.ours(model)
    unet2d = networks.in_diffusers(diffusers, model, network)
    networks.check_same_outputs(network, unet2d, model.size, CPU)
    with torch.no_grad():
        unet2d.mid_block.resnets[0].conv1.bias[0] += 0.3
    with pytest.raises(SystemExit, match="not the same network"):
        networks.check_same_outputs(network, unet2d, model.size, CPU)


def test_what_does_not_run_is_one_rows_own():
    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def no_kernel():
        raise RuntimeError("No available kernel.\nAborting.")

    seconds, failed = common.interleaved(
        {"fits": lambda: None, "large": too_large, "none": no_kernel}, 3, CPU
    )
    assert len(seconds["fits"]) == 3 and seconds["large"] == seconds["none"] == []
    assert failed == {
        "large": "out of memory",
        "none": "failed: RuntimeError: No available kernel.",
    }
    assert (
        common.speed([], 512, failed["large"]) == ["out of memory", ""]
        and common.ratio_cell([], [1.0]) == ""
    )
    assert common.speed([0.5, 0.25, 2.0], 4, None) == ["0.5", "8"]


def test_interleaved_turns_the_order():
    said = []
    common.interleaved(
        {"a": lambda: said.append("a"), "b": lambda: said.append("b")}, 3, CPU, warmup=0
    )
    assert "".join(said) == "abbaab"


def absent(monkeypatch, module):
    """As where it is not installed."""
    monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize(
    "module", ["common", "kernels", "unet", "sampling", "traffic", "loader", "kernels.tune"]
)
def test_a_bare_gpu_machine_needs_torch_triton_and_numpy(module):
    """No config is composed there, so that neither hydra nor what reads medical files is needed."""
    absent = ("hydra", "omegaconf", "antlr4", "pydicom", "nibabel", "diffusers", "torch_fidelity")
    name = module if "." in module else f"benchmarks.{module}"
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); import {name}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=200)
