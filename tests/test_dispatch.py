"""The choice between Triton and the reference, as torch.compile sees it."""

import importlib.util

import torch
import torch._dynamo  # it searches too, while it is imported

from kernels import dispatch


def test_a_compiled_network_does_not_search_for_triton(monkeypatch):
    """On a GPU every norm asks whether Triton is there, and torch before 2.13 may not trace that search: it would break the graph there."""
    search = importlib.util.find_spec

    def untraceable(name, package=None):
        torch._dynamo.graph_break()
        return search(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", untraceable)
    compiled = torch.compile(lambda x: x + 1 if dispatch.installed() else x - 1, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1)).item() == (1 if search("triton") else -1)
