"""The one way in which a fused operation becomes an operator of torch: its schema is read from the
annotations of a function, so that a signature is written once.

torch.library.custom_op with register_autograd comes to the same with 336 in place of 88
microseconds of a CPU for forward and backward, 37 in place of 17 without a gradient (torch 2.13,
kernels that do nothing): a small batch waits for nothing else.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NAMESPACE = "diffusion_transfer"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
OPS = getattr(torch.ops, NAMESPACE)
# a compiled graph keeps the layouts that its kernels were traced with
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
# annotations that a schema spells otherwise
TYPES = {"Tensor | None": "Tensor?", "Act": "str"}

Function = Callable[..., Any]
RUNS: dict[str, Function] = {}  # what each operator runs, for benchmarks.traffic


def define(run: Function, allocate: Function, operation: Function | None = None) -> Any:
    """Defines an operator of torch.ops.diffusion_transfer, without a gradient.

    Args:
        run: computes the outputs, from arguments by name.
        allocate: makes the outputs alone, from the same arguments: all that a fake tensor needs.
        operation: has the name, and the annotations that are, as text, the schema; behind its
            outputs run has one more. None: run is the operation, and has no other output.

    Returns:
        The operator's overload. It takes all its arguments by position.
    """
    named = operation or run
    name, parameters = named.__name__, inspect.signature(named).parameters
    takes = ", ".join(
        f"{TYPES.get(each.annotation, each.annotation)} {key}" for key, each in parameters.items()
    )
    outputs = named.__annotations__["return"].count("Tensor") + (named is operation)
    returns = ", ".join(["Tensor"] * outputs)

    def by_name(function: Function) -> Function:
        return lambda *inputs: function(**dict(zip(parameters, inputs, strict=True)))

    LIBRARY.define(f"{name}({takes}) -> ({returns})", tags=TAGS)
    RUNS[name] = by_name(run)
    LIBRARY.impl(name, RUNS[name], "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", by_name(allocate), lib=LIBRARY)
    return getattr(OPS, name).default


def differentiable(
    operation: Function,
    run: Function,
    allocate: Function,
    save: Callable[..., None],
    gradient: Callable[..., dict[str, Tensor | None]],
) -> Function:
    """Defines the operator of an operation of kernels.reference, with a gradient.

    Args:
        operation: has the signature and the name.
        run, allocate: see define(). Behind the operation's outputs comes one for the gradient
            alone, such as the statistics of a norm.
        save: (ctx, inputs by name, outputs) keeps what gradient needs.
        gradient: (ctx, names of the inputs that need one, the gradient of each output or None
            where nobody uses it) -> gradients by the names of the inputs.

    Returns:
        A function with the operation's signature.
    """
    overload = define(run, allocate, operation)
    parameters = inspect.signature(operation).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    names = list(defaults)

    class WithGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            with torch._C._AutoDispatchBelowAutograd():
                outputs = overload(*inputs)
            ctx.mark_non_differentiable(outputs[-1])
            ctx.set_materialize_grads(False)
            save(ctx, dict(zip(names, inputs)), outputs)
            return outputs

        @staticmethod
        @once_differentiable
        def backward(ctx, *upstream):
            needed = {name for name, needs in zip(names, ctx.needs_input_grad) if needs}
            found = gradient(ctx, needed, *upstream[:-1])
            return tuple(found.get(name) for name in names)

    def dispatched(*inputs: Any) -> Any:
        wanted = any(isinstance(value, Tensor) and value.requires_grad for value in inputs)
        if torch.is_grad_enabled() and wanted:
            return WithGradient.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*inputs)

    LIBRARY.impl(operation.__name__, dispatched, "Autograd")

    @functools.wraps(operation)
    def call(*given: Any, **named: Any) -> Any:
        rest = [named.get(name, defaults[name]) for name in names[len(given) :]]
        outputs = overload(*given, *rest)[:-1]
        return outputs if len(outputs) > 1 else outputs[0]

    return call
