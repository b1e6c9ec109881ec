"""From natural MIL (PyTorch's shapes, any op) to the MIL that a chip takes, pass by pass.

    natural MIL ──► few kinds of ops ── lower_layout ──► rank 4 ──► [control_ranges] ──► legal MIL

Each pass is one file: a pure function from Program to Program, which says how far numbers move. Their order lives in
pipeline.py and nowhere else. The program is checked after every pass that changed it.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torchane.abi.frozen import Constant
from torchane.abi.passes import PassRun
from torchane.abi.ports import PortLayout
from torchane.abi.ranges import Inputs, Ranges
from torchane.chips import Chip, require_settled
from torchane.errors import CompileError, UsageError
from torchane.mil.check import check
from torchane.mil.ir import Program
from torchane.passes.bake_constants import Frozen, low_bit_op, require_form
from torchane.passes.decompose_activations import RULES as decompose_activations_rules
from torchane.passes.decompose_arithmetic import RULES as decompose_arithmetic_rules
from torchane.passes.decompose_moves import RULES as decompose_moves_rules
from torchane.passes.decompose_norms import RULES as decompose_norms_rules
from torchane.passes.decompose_reductions import RULES as decompose_reductions_rules
from torchane.passes.lower_bools import RULES as lower_bools_rules
from torchane.passes.pipeline import Job, Pass, pass_list

__all__ = ["Frozen", "Job", "Lowered", "Pass", "has_form", "low_bit_op", "lower", "pass_list", "require_form", "run"]


@dataclass(frozen=True)
class Lowered:
    """A legal program, and how each tensor lies in its port: by the name that the port had in the natural
    program. Inputs and outputs keep their order; their names in `program` are new. ranges: what the runtime must know,
    if ranges were asked for; `program` then has a port more on either side. passes: what each pass did, in order. constants: the inputs that
    are none any more, in the order of their file."""

    program: Program
    ports: Mapping[str, PortLayout]
    ranges: Ranges | None = None
    passes: tuple[PassRun, ...] = ()
    constants: tuple[Constant, ...] = ()


def lower(
    program: Program,
    chip: Chip,
    ports: Mapping[str, PortLayout | None],
    *,
    weights: Collection[str] = (),
    ranges: Inputs | None = None,
    frozen: Frozen | None = None,
    without: Collection[str] = (),
) -> Lowered:
    """The program as `chip` takes it.

    ports: layouts that inputs and outputs must have, by name; None or absent leaves the choice to the layout
    pass. weights: names of ports that hold trained tensors or their gradients. ranges: asks for range control, and says
    what is known of the inputs. frozen: weights that become constants. without: names of passes to leave out.
    Raises CompileError that names the pass where an op has no form, LegalityError where the chip is not known
    to take the result, UsageError where it takes it with the passes that were left out.
    """
    try:
        return _lowered(program, Job(chip, ports, weights, ranges, frozen=frozen), without)
    except CompileError as refused:
        if without:
            _lowered(program, Job(chip, ports, weights, ranges, frozen=frozen), ())  # raises its own error where there is no form in any case
            raise UsageError(f"without={','.join(without)}: the program has a legal form with these passes, and none without them. {refused}") from refused
        raise


def _lowered(program: Program, job: Job, without: Collection[str]) -> Lowered:
    _check(program, "capture")
    if any(op.blocks for op in program.ops) or len(program.functions) != 1:
        raise CompileError("a program to lower has one function and no control flow: unroll loops, leave choices to the host.")
    runs = []
    for one in pass_list(control=job.inputs is not None, baked=job.frozen is not None, without=without):
        start = time.perf_counter()
        program = run(one, program, job)
        runs.append(PassRun(one.name, len(program.ops), time.perf_counter() - start, one.moves))
    require_settled(program, job.chip)
    return Lowered(program, job.layouts, job.ranges, tuple(runs), job.constants)


def has_form(kind: str, chip: Chip) -> bool:
    """Whether `lower` can write ops of this MIL kind for the chip, element types and shapes permitting: what
    it cannot (floor; log on `portable`) is better left to the host than put into a program."""
    if chip.takes(kind):
        return True
    needs = _NEEDS.get(kind, ())
    return kind in _REWRITTEN and all(chip.takes(need) for need in needs)


#: The kinds that some pass writes in other ops.
_REWRITTEN = frozenset(
    {"concat", "pad", "sqrt"}.union(
        decompose_norms_rules, decompose_activations_rules, decompose_reductions_rules, lower_bools_rules,
        decompose_arithmetic_rules, decompose_moves_rules,
    )
)  # fmt: skip

#: What a rewritten form cannot do without.
_NEEDS = {"reduce_log_sum": ("log",), "reduce_log_sum_exp": ("log",)}


def run(one: Pass, program: Program, job: Job) -> Program:
    """The program after one pass, checked if it changed. Raises CompileError that names the pass."""
    try:
        after = one.apply(program, job)
    except CompileError as error:
        raise type(error)(f"{error} (pass {one.name})") from error
    unchanged = len(after.ops) == len(program.ops) and all(a is b for a, b in zip(after.ops, program.ops))
    if not unchanged or after.outputs != program.outputs:
        _check(after, one.name, None if one.changes_ports else program)
    return after


def _check(program: Program, name: str, before: Program | None = None) -> None:
    try:
        check(program, before=before)
    except CompileError as error:
        raise CompileError(f"after the pass {name} the program is not well formed: {error}") from error
