"""Any MIL program on the twin: native runs where there are kernels, the NumPy rule for every other op.

    ops ──► has it a kernel? ──► runs: twin* │ NumPy* │ twin* ... ──► values, and which ops were not the twin's

A run on the twin is as long as it can be: what it does not need waits for the NumPy ops behind it. NumPy ops
keep their order, so that states are read and written as the text says. In `ideal` arithmetic, float64 from end
to end, there is nothing for the twin to do.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from torchane import native
from torchane.errors import DeviceError
from torchane.mil.constants import inline_constants
from torchane.mil.evaluate import Run, as_computed, function_of, require_memory
from torchane.mil.ir import Block, Function, Op, Program, Var, walk
from torchane.mil.sizes import with_sizes
from torchane.mil.types import FP16, StateType, TensorType
from torchane.runtime.twin import ARITHMETICS, TwinDevice, load_program
from torchane.runtime.twin.ops import RULES


@dataclass(frozen=True)
class Elsewhere:
    """An op that went through its NumPy rule, and why: `cause` says it in general, `reason` of this op."""

    name: str
    kind: str
    cause: str
    reason: str


@dataclass(frozen=True)
class Ran:
    """What a run gave. native_ops: how many ops the twin executed, in `dispatches` programs."""

    outputs: Mapping[str, Any]
    elsewhere: tuple[Elsewhere, ...]
    native_ops: int
    dispatches: int


@dataclass(frozen=True)
class Part:
    """Ops that run one after the other, all on the twin or all in NumPy."""

    ops: tuple[Op, ...]
    native: bool


def run_mixed(
    program: Program,
    inputs: Mapping[str, np.ndarray],
    *,
    function: str | None = None,
    states: MutableMapping[str, np.ndarray] | None = None,
    arithmetic: str = "exact",
) -> Ran:
    """The outputs of a program whose constants are in memory. Arguments and errors as those of `mil.evaluate`."""
    chosen = function_of(inline_constants(replace(program, functions=(function_of(program, function),))))
    run = Run(chosen, inputs, states=states, arithmetic=arithmetic)
    if reason := why_no_kernels(arithmetic):
        run.ops(chosen.ops)
        elsewhere = (Elsewhere(op.name, op.kind.name, reason, reason) for op in _counted(chosen.ops))
        return Ran(run.finish(), tuple(elsewhere), 0, 0)
    shapes = {var.name: np.shape(inputs[var.name]) for var in chosen.inputs if not isinstance(var.type, StateType)}
    sized = as_computed(with_sizes(chosen, shapes), arithmetic)  # they fit: the run has begun
    run = Run(sized, inputs, states=states, arithmetic=arithmetic)
    parts, elsewhere = cut(sized, arithmetic)
    device = TwinDevice(arithmetic=arithmetic)
    for index, (part, wanted) in enumerate(zip(parts, _wanted(parts, sized.outputs), strict=True)):
        if part.native:
            _dispatch(device, run, part.ops, wanted, f"{sized.name}, part {index}", arithmetic)
        else:
            run.ops(part.ops)
    native = [part for part in parts if part.native]
    return Ran(run.finish(), elsewhere, sum(len(part.ops) for part in native), len(native))


def why_no_kernels(arithmetic: str) -> str | None:
    """Why the twin computes nothing in this arithmetic here; None where it does."""
    if arithmetic not in ARITHMETICS:
        return f"the arithmetic {arithmetic} has no kernels"
    return "this processor has no instructions for products of bf16 numbers" if arithmetic == "fast" and not native.has_fast() else None


def cut(function: Function, arithmetic: str) -> tuple[tuple[Part, ...], tuple[Elsewhere, ...]]:
    """The function's ops in parts that alternate between the twin and NumPy, and why what is in NumPy is there."""
    waiting = [(op, why_not_native(op, arithmetic), _reads(op)) for op in function.ops]
    elsewhere = tuple(
        Elsewhere(inner.name, inner.kind.name, *(why if inner is op else ("block", f"it stands in a block of {op.name}")))
        for op, why, _ in waiting
        if why
        for inner in _counted((op,))
    )
    defined = set(function.inputs)
    parts = []
    native = True
    while waiting:
        taken, left = [], []
        blocked = False
        for item in waiting:
            op, why, reads = item
            if (why is None) == native and not blocked and reads <= defined:
                defined.update(op.outputs)
                taken.append(op)
            else:
                left.append(item)
                blocked = blocked or not native and why is not None  # NumPy ops do not overtake each other
        if taken:
            parts.append(Part(tuple(taken), native))
        waiting, native = left, not native
    return tuple(parts), elsewhere


def why_not_native(op: Op, arithmetic: str) -> tuple[str, str] | None:
    """Why the twin cannot run this op, in general and of this op; None if it can."""
    if op.kind.name not in RULES:
        reason = "a constant that leaves as it is" if op.kind.name == "const" else "the twin has no kernel for it"
        return reason, reason
    for value in (*op.inputs, *op.outputs):
        type_ = value.type
        if not isinstance(type_, TensorType) or type_.dtype is not FP16:
            return "type", f"{value.name} is a {type_}, and the twin computes in fp16"
        if not type_.is_fixed:
            return "size", f"{value.name} has a size that only the run tells: {type_}"
        if not type_.size:
            return "empty", f"{value.name} is empty: {type_}"
    try:
        load_program(_alone((op,), op.outputs), "", arithmetic)
    except DeviceError as error:
        reason = str(error).removeprefix(f": op {op.name}").lstrip(": ").rstrip(".")
        return reason, reason
    return None


def _dispatch(
    device: TwinDevice, run: Run, ops: tuple[Op, ...], wanted: set[Var], name: str, arithmetic: str
) -> None:
    """Runs ops on the twin; the results that something behind them reads join the values of the run."""
    for op in ops:
        require_memory(op)
    results = tuple(var for op in ops for var in op.outputs if var in wanted)
    program = _alone(ops, results)
    loaded = load_program(program, name, arithmetic)
    try:
        inputs = [device.allocate(type_) for type_ in loaded.inputs]
        outputs = [device.allocate(type_) for type_ in loaded.outputs]
        for var, buffer in zip(program.inputs, inputs, strict=True):
            buffer.array[...] = run.values[var]
        device.run(loaded, inputs, outputs)
    except MemoryError as error:
        scratch = f"{loaded.stats.scratch_bytes:,} bytes between its ops"
        raise DeviceError(f"{name}: there is not enough memory to run it; it needs {scratch}.") from error
    run.values.update((var, buffer.array) for var, buffer in zip(results, outputs, strict=True))


def _alone(ops: tuple[Op, ...], outputs: tuple[Var, ...]) -> Program:
    """A program of these ops; what they read and do not define are its inputs."""
    own = {var for op in ops for var in op.outputs}
    inputs = dict.fromkeys(var for op in ops for var in op.inputs if var not in own)
    return Program((Function("main", tuple(inputs), ops, outputs),))


def _wanted(parts: tuple[Part, ...], outputs: tuple[Var, ...]) -> list[set[Var]]:
    """For each part, what is read behind it."""
    found, behind = [], set(outputs)
    for part in reversed(parts):
        found.append(behind)
        behind = behind.union(*map(_reads, part.ops))
    return found[::-1]


def _reads(op: Op) -> set[Var]:
    """What an op needs from outside, its blocks included."""
    return {*op.inputs, *(var for block in op.blocks for var in _block_reads(block))}


def _block_reads(block: Block) -> set[Var]:
    own = {*block.inputs, *(var for op in block.ops for var in op.outputs)}
    return {var for var in (*(v for op in block.ops for v in _reads(op)), *block.outputs) if var not in own}


def _counted(ops: tuple[Op, ...]) -> list[Op]:
    return [op for op in walk(ops) if op.kind.name != "const"]

