"""The yardstick of precision: a function with its gradients in float64, under autocast to bf16 and fp16, and through the backend."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from torchane.capture import backend

#: Four roundings to fp16: what a chain of two products and the results themselves may differ by.
FLOOR = 4 * 2.0**-11

#: Of the largest gradient: what is smaller is noise around zero.
_NOTHING = 1e-5

Result = list[torch.Tensor]


@dataclass(frozen=True)
class Compared:
    """The worst relative error (norm of the difference over norm) of outputs and gradients: ours, and the better autocast's."""

    ours: float
    autocast: float

    @property
    def is_as_good(self) -> bool:
        return self.ours <= max(1.2 * self.autocast, FLOOR)


def compared(build: Callable[[], tuple[nn.Module, Sequence[Any]]], seed: int = 0) -> Compared:
    """`build` gives a module, whose outputs are floats, and its inputs; gradients are those of its parameters."""
    torch.manual_seed(seed)
    module, inputs = build()
    right, halves = right_and_autocast(module, inputs)
    ours = copy.deepcopy(module)
    return Compared(error_of(results(ours, inputs, compiled(ours)), right), halves)


def right_and_autocast(module: nn.Module, inputs: Sequence[Any]) -> tuple[Result, float]:
    """The results in float64, and the error of the better autocast."""
    wide = copy.deepcopy(module).double()
    right = results(wide, [x.double() if _is_float(x) else x for x in inputs])
    halves = [_tried(copy.deepcopy(module), inputs, torch.autocast("cpu", dtype)) for dtype in (torch.bfloat16, torch.float16)]
    found = [error_of(half, right) for half in halves if half is not None]
    return right, min(found, default=0.0)  # no yardstick: only the floor will do


def compiled(module: nn.Module) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(module, backend=backend.ane, options={"device": "twin"}, dynamic=False)


def _tried(module: nn.Module, inputs: Sequence[Any], context: Any) -> Result | None:
    """None where autocast has no kernel."""
    try:
        return results(module, inputs, context=context)
    except (RuntimeError, NotImplementedError):
        return None


def results(module: nn.Module, inputs: Sequence[Any], call: Callable[..., Any] | None = None, context: Any = None) -> Result:
    """Outputs, and gradients of the module's parameters."""
    with warnings.catch_warnings(), context or nullcontext():
        warnings.simplefilter("ignore")
        outputs = [y for y in tree_flatten((module if call is None else call)(*inputs))[0] if _is_float(y)]
    return [*(y.detach().double() for y in outputs), *gradients_of(outputs, list(module.parameters()))]


def gradients_of(outputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]) -> Result:
    """Of one fixed weighting of the outputs."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator) for y in outputs]
    wanted = [(y, w.to(y.dtype)) for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
    if not wanted:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.autograd.grad([y for y, _ in wanted], parameters, [w for _, w in wanted], retain_graph=True, allow_unused=True)
    return [torch.zeros(()) if gradient is None else gradient.double() for gradient in found]


def error_of(found: Result, right: Result) -> float:
    """The worst relative norm of a difference; what is nothing beside the largest is left out."""
    largest = max((y.norm().item() for y in right), default=0.0)
    errors = [
        ((mine - theirs).norm() / theirs.norm()).item()
        for mine, theirs in zip(found, right, strict=True)
        if theirs.norm() > _NOTHING * largest
    ]
    return math.inf if any(math.isnan(error) for error in errors) else max(errors, default=0.0)


def _is_float(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()
