"""One small program run by PyTorch and by the backend, and everything that differs between the two.

    Program ──► eager float32     ──┐
            ──► eager autocast      ├──► differences: values, NaN and infinities, gradients, dtypes, shapes, strides,
            ──► compiled "ane"    ──┘    storage sharing, what was written into inputs, parameters and buffers

A program is a function of tensors, or a module. The bar of a number is 2 % in relative norm, or 1.2 times what bf16
autocast loses where that is more: where autocast is right, so is the backend.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

BAR = 0.02
#: What a graph writes into state is float32 arithmetic of the host: what feeds it may have passed a program.
STATE_BAR = 0.02


@dataclass(frozen=True)
class Program:
    """make: gives the callable (a module keeps its parameters and buffers) and its inputs. backward: whether gradients are
    taken. steps: how often it is called, its state carried on. exact_random: its random numbers must be eager's."""

    name: str
    make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
    backward: bool = True
    steps: int = 1


PROGRAMS: dict[str, Program] = {}


def program(name: str, make: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]], **kwargs: Any) -> None:
    """Adds a program to the catalogue."""
    assert name not in PROGRAMS, f"two programs are named {name!r}"
    PROGRAMS[name] = Program(name, make, **kwargs)


def of(name: str, f: Callable[..., Any], *inputs: Any, **kwargs: Any) -> None:
    """A function of inputs: a tuple of sizes is a normal tensor that wants a gradient, anything else is taken as it is."""
    program(name, lambda: (f, tuple(_input(i, given) for i, given in enumerate(inputs))), **kwargs)


def module(name: str, build: Callable[[], nn.Module], *inputs: Any, **kwargs: Any) -> None:
    """A module of inputs, as `of` makes them."""
    program(name, lambda: (build(), tuple(_input(i, given) for i, given in enumerate(inputs))), **kwargs)


def _input(index: int, given: Any) -> Any:
    if isinstance(given, tuple) and all(isinstance(size, int) for size in given):
        return torch.randn(given, generator=torch.Generator().manual_seed(index + 1)).requires_grad_()
    if callable(given) and not isinstance(given, nn.Module):
        return given()
    return given


@dataclass
class Outcome:
    """What one run left behind."""

    outputs: list[Any] = field(default_factory=list)
    gradients: dict[str, torch.Tensor | None] = field(default_factory=dict)
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    sharing: list[tuple[int, ...]] = field(default_factory=list)
    drawn: torch.Tensor | None = None


def run(program: Program, how: str) -> Outcome:
    """how: "eager", "autocast" or "ane"."""
    torch._dynamo.reset()
    torch.manual_seed(11)
    call, inputs = program.make()
    inputs = copy.deepcopy(inputs)
    called = torch.compile(call, backend="ane", options={"device": "twin"}) if how == "ane" else call
    torch.manual_seed(12)
    outcome = Outcome()
    for _ in range(program.steps):
        with torch.autocast("cpu", torch.bfloat16) if how == "autocast" else contextlib.nullcontext():
            result = called(*inputs)
        outcome.outputs = pytree.tree_leaves(result)
        if program.backward:
            _backward(outcome.outputs)
    outcome.drawn = torch.rand(())
    named = dict(_named_tensors(call, inputs))
    outcome.gradients = {name: t.grad for name, t in named.items() if t.is_leaf and t.requires_grad}
    outcome.state = {name: t.detach().clone() for name, t in named.items()}
    outcome.sharing = _sharing([*outcome.outputs, *named.values()])
    return outcome


def _named_tensors(call: Any, inputs: tuple[Any, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    for index, value in enumerate(pytree.tree_leaves(inputs)):
        if isinstance(value, torch.Tensor):
            yield f"input {index}", value
    if isinstance(call, nn.Module):
        yield from call.named_parameters()
        yield from call.named_buffers()


def _backward(outputs: list[Any]) -> None:
    losses = []
    for index, value in enumerate(outputs):
        if isinstance(value, torch.Tensor) and value.requires_grad and (value.is_floating_point() or value.is_complex()):
            weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(100 + index))
            number = torch.view_as_real(value).sum(-1) if value.is_complex() else value
            losses.append((number.float() * weights).sum() / max(1, value.numel()) ** 0.5)
    if losses:
        torch.stack(losses).sum().backward()


def _sharing(values: list[Any]) -> list[tuple[int, ...]]:
    """Which tensors lie in one storage, by position."""
    groups: dict[int, list[int]] = {}
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.untyped_storage().nbytes():
            groups.setdefault(value.untyped_storage().data_ptr(), []).append(index)
    return sorted(tuple(group) for group in groups.values() if len(group) > 1)


def differences(program: Program) -> list[str]:
    """Every difference of the backend from eager float32; empty where it is right. Errors of the backend come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        right, half, got = run(program, "eager"), _half(program), run(program, "ane")
    found = []
    if len(right.outputs) != len(got.outputs):
        return [f"{len(got.outputs)} outputs, right: {len(right.outputs)}"]
    for index, (a, b) in enumerate(zip(got.outputs, right.outputs, strict=True)):
        found += _of_output(f"output {index}", a, b, half.outputs[index] if half else None)
    for name, b in right.gradients.items():
        a = got.gradients[name]
        if (a is None) != (b is None):
            found.append(f"gradient of {name}: {'missing' if a is None else 'there'}, right: {'none' if b is None else 'one'}")
        elif a is not None:
            found += _of_numbers(f"gradient of {name}", a, b, half.gradients.get(name) if half else None, BAR)
    for name, b in right.state.items():
        found += _of_numbers(f"{name} afterwards", got.state[name], b, half.state.get(name) if half else None, STATE_BAR)
    if got.sharing != right.sharing:
        found.append(f"shared storage {got.sharing}, right: {right.sharing}")
    if not torch.equal(got.drawn, right.drawn):
        found.append("the random stream stands elsewhere afterwards")
    return found


def _half(program: Program) -> Outcome | None:
    try:
        return run(program, "autocast")
    except Exception:  # a program that autocast cannot run has no yardstick but the bar
        return None


def _of_output(name: str, got: Any, right: Any, half: Any) -> list[str]:
    if not isinstance(right, torch.Tensor):
        return [] if got == right or (got != got and right != right) else [f"{name}: {got!r}, right: {right!r}"]
    found = [
        f"{name}: {what} {getattr(got, what)}, right: {getattr(right, what)}"
        for what in ("dtype", "shape", "requires_grad")
        if getattr(got, what) != getattr(right, what)
    ]
    if not found and (got.stride(), got.storage_offset()) != (right.stride(), right.storage_offset()):
        found.append(f"{name}: strides {got.stride()} from {got.storage_offset()}, right: {right.stride()} from {right.storage_offset()}")
    return found or _of_numbers(name, got, right, half, BAR)


def _of_numbers(name: str, got: torch.Tensor, right: torch.Tensor, half: Any, bar: float) -> list[str]:
    got, right = got.detach(), right.detach()
    if not (right.is_floating_point() or right.is_complex()):
        return [] if torch.equal(got, right) else [f"{name}: {int((got != right).sum())} of {right.numel()} whole numbers differ"]
    for what, test in (("NaN", torch.isnan), ("infinite", torch.isinf)):
        if not torch.equal(test(got), test(right)):
            return [f"{name}: {int(test(got).sum())} values are {what}, right: {int(test(right).sum())}"]
    finite = torch.isfinite(right)
    if not torch.equal(got[~finite & ~torch.isnan(right)], right[~finite & ~torch.isnan(right)]):
        return [f"{name}: an infinity has the other sign"]
    gap = _gap(got[finite], right[finite])
    if isinstance(half, torch.Tensor) and half.shape == right.shape and torch.isfinite(half[finite]).all():
        bar = max(bar, 1.2 * _gap(half.detach()[finite], right[finite]))
    return [] if gap <= bar else [f"{name}: off by {gap:.3g} in relative norm, bar {bar:.3g}"]


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    kind = torch.complex128 if b.is_complex() else torch.float64
    a, b = a.to(kind), b.to(kind)
    size, off = b.norm().item(), (a - b).norm().item()
    if size == 0:
        return off
    # What is the rounding of other numbers (1e-9 beside terms of 1) has no digits of its own in float32 either.
    return off / size if off > 1e-7 * max(1.0, b.numel()) ** 0.5 else 0.0
