"""The choice between Triton and the reference."""

import importlib.util

import pytest
import torch
import torch._dynamo  # it searches for packages too, while it is imported

from kernels import dispatch
from runtime.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def choice():
    """auto, whatever other tests chose; theirs comes back."""
    before = dispatch._chosen, dispatch._capable
    dispatch._chosen, dispatch._capable = "auto", None
    yield
    dispatch._chosen, dispatch._capable = before


def test_what_cannot_run_is_refused(choice):
    with pytest.raises(UserError, match="CUDA device, and this is cpu"):
        dispatch.select("triton", CPU)


@pytest.mark.parametrize(
    ("kernels", "device", "capability", "fused"),
    [
        ("auto", "cpu", None, False),
        ("auto", "cuda", (9, 0), True),
        ("auto", "cuda", (7, 5), False),
        ("reference", "cuda", (9, 0), False),
    ],
)
def test_auto_is_triton_on_a_gpu(choice, caplog, monkeypatch, kernels, device, capability, fused):
    """One that the kernels were compiled for; and the log says so."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    with caplog.at_level("INFO"):
        dispatch.select(kernels, torch.device(device))
    assert dispatch.fused(torch.device(device)) == fused
    assert caplog.messages == ["kernels: Triton" if fused else "kernels: torch's own"]


def test_the_capability_is_asked_for_once(choice, monkeypatch):
    """And not 79 times a forward, as every norm asks what to run."""
    asked = []
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda d=None: asked.append(d) or (9, 0)
    )
    dispatch.select("auto", torch.device("cuda"))
    assert all(dispatch.fused(torch.device("cuda")) for _ in range(79)) and len(asked) == 1


def test_a_compiled_network_does_not_search_for_triton(choice, monkeypatch):
    """On a GPU every norm asks whether Triton is there, and torch before 2.13 may not trace that
    search: it would break the graph there."""
    search = importlib.util.find_spec

    def untraceable(*names):
        torch._dynamo.graph_break()
        return search(*names)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", untraceable)
    compiled = torch.compile(
        lambda x: x + dispatch.fused(torch.device("cuda")), fullgraph=True, backend="eager"
    )
    assert compiled(torch.zeros(1)).item() == 1
