"""From natural MIL (PyTorch's shapes, any op) to the MIL that a chip takes, pass by pass.

    natural MIL ── BEFORE_LAYOUT ──► few kinds of ops ── lower_layout ──► rank 4 ── AFTER_LAYOUT ──► legal MIL
                                                                   └─ control_ranges, where asked for

Each pass is one file: a pure function from Program to Program, which says how far numbers move. Order lives in
the tuples below and nowhere else. The program is checked after every pass that changed it.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torchane.abi.ports import PortLayout
from torchane.abi.ranges import Inputs, Ranges
from torchane.chips import Chip, require_settled
from torchane.errors import CompileError
from torchane.mil.check import check
from torchane.mil.constants import inline_constants
from torchane.mil.ir import Program
from torchane.mil.name_constants import name_constants
from torchane.passes.control_ranges import control_ranges
from torchane.passes.decompose_activations import RULES as decompose_activations_rules
from torchane.passes.decompose_activations import decompose_activations
from torchane.passes.decompose_arithmetic import RULES as decompose_arithmetic_rules
from torchane.passes.decompose_arithmetic import decompose_arithmetic
from torchane.passes.decompose_moves import RULES as decompose_moves_rules
from torchane.passes.decompose_moves import decompose_moves
from torchane.passes.decompose_norms import RULES as decompose_norms_rules
from torchane.passes.decompose_norms import decompose_norms
from torchane.passes.decompose_reductions import RULES as decompose_reductions_rules
from torchane.passes.decompose_reductions import decompose_reductions
from torchane.passes.drop_dead import drop_dead
from torchane.passes.drop_noops import drop_noops
from torchane.passes.fold_constants import fold_constants
from torchane.passes.layout import lower_layout
from torchane.passes.lower_bools import RULES as lower_bools_rules
from torchane.passes.lower_bools import lower_bools
from torchane.passes.lower_row_slices import lower_row_slices
from torchane.passes.lower_selections import lower_selections
from torchane.passes.merge_duplicates import merge_duplicates
from torchane.passes.name_values import name_values
from torchane.passes.scale_squares import scale_squares
from torchane.passes.settle_outputs import settle_outputs
from torchane.passes.sink_expands import sink_expands
from torchane.passes.split_sums import split_sums
from torchane.passes.spread_powers import spread_powers

__all__ = ["AFTER_LAYOUT", "BEFORE_LAYOUT", "CONTROL", "PIPELINE", "Lowered", "Step", "has_form", "lower", "run"]


@dataclass(frozen=True)
class Step:
    """A pass at its place. `spares`: its rules leave out the ops that the chip takes as they are."""

    run: Callable[..., Program]
    why: str
    spares: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__


BEFORE_LAYOUT: tuple[Step, ...] = (
    Step(inline_constants, "rules look at constants where they are read"),
    Step(drop_dead, "nothing that nobody reads costs the passes below anything, or is refused"),
    Step(fold_constants, "masks made of ranges and comparisons become numbers before anything is rewritten"),
    Step(decompose_norms, "norms become means and powers, which the passes below take on", spares=True),
    Step(decompose_activations, "before bools and arithmetic: some become comparisons, minima and absolutes", spares=True),
    Step(scale_squares, "while a mean is still a mean; norms are written out by now"),
    Step(decompose_reductions, "means become sums; some become absolutes and roots", spares=True),
    Step(lower_bools, "after all that makes comparisons, before minima are written as maxima", spares=True),
    Step(decompose_arithmetic, "the last of the decompositions: what they share", spares=True),
    Step(decompose_moves, "everything that moves elements becomes slices, joins, pads and reshapes", spares=True),
    Step(sink_expands, "products are taken apart whole only if no stretching stands between their factors"),
    Step(drop_dead, "stretched values that nobody reads any more are no second reader of a product"),
    Step(drop_noops, "x * 1 and x + 0 are no factors; moves that meet become one"),
    Step(merge_duplicates, "equal factors are recognised as equal"),
    Step(spread_powers, "after all that makes powers; products are whole now"),
    Step(lower_selections, "slices, joins and pads of one value become one product, as far as it goes", spares=True),
    Step(split_sums, "after all that makes products; the layout joins its moves with others", spares=True),
    Step(fold_constants, "constants that met on the way"),
    Step(drop_noops, "what the rewriting left"),
    Step(merge_duplicates, "what the rewriting made twice: x * r of a norm and of its gradient"),
    Step(drop_dead, "the layout weighs every op that it sees"),
    Step(settle_outputs, "the layout wants outputs that are no inputs"),
)

LAYOUT = Step(lower_layout, "PyTorch's shapes become rank 4, channels first; needs the ports, so `lower` calls it")

AFTER_LAYOUT: tuple[Step, ...] = (
    Step(lower_row_slices, "which axis lies in rows is known only now", spares=True),
    Step(fold_constants, "reshaped constants"),
    Step(drop_noops, "views that meet become one"),
    Step(merge_duplicates, "equal views of one value"),
    Step(drop_dead, "what those left"),
    Step(settle_outputs, "merging may have given an output another reader"),
    Step(name_constants, "the form that is emitted; every pass above wants constants inline"),
    Step(name_values, "last: names that sort, and that do not depend on where the program came from"),
)

PIPELINE: tuple[Step, ...] = (*BEFORE_LAYOUT, LAYOUT, *AFTER_LAYOUT)

#: Not in the pipeline of every program: `lower` runs it where ranges are asked for.
CONTROL = Step(control_ranges, "before outputs are settled, which it gives other readers; after all that moves or merges ops")


@dataclass(frozen=True)
class Lowered:
    """A legal program, and how each tensor lies in its port: by the name that the port had in the natural
    program. Inputs and outputs keep their order; their names in `program` are new. ranges: what the runtime must know,
    if ranges were asked for; `program` then has a port more on either side."""

    program: Program
    ports: Mapping[str, PortLayout]
    ranges: Ranges | None = None


def lower(
    program: Program,
    chip: Chip,
    ports: Mapping[str, PortLayout | None],
    *,
    weights: Collection[str] = (),
    ranges: Inputs | None = None,
) -> Lowered:
    """The program as `chip` takes it.

    ports: layouts that inputs and outputs must have, by name; None or absent leaves the choice to the layout
    pass. weights: names of ports that hold trained tensors or their gradients. ranges: asks for range control, and says
    what is known of the inputs.
    Raises CompileError that names the pass where an op has no form, LegalityError where the chip is not known
    to take the result.
    """
    _check(program, "capture")
    if any(op.blocks for op in program.ops) or len(program.functions) != 1:
        raise CompileError("a program to lower has one function and no control flow: unroll loops, leave choices to the host.")
    for step in BEFORE_LAYOUT:
        program = run(step, program, chip)
    try:
        program, layouts = lower_layout(program, ports, weights=weights, multiple=chip.limit("port_row_multiple"))
    except CompileError as error:
        raise type(error)(f"{error} (pass {LAYOUT.name})") from error
    _check(program, LAYOUT.name)
    controlled: Ranges | None = None
    for step in AFTER_LAYOUT:
        if step.run is settle_outputs and ranges is not None:
            program, controlled = control_ranges(program, chip, ranges)
            _check(program, CONTROL.name)
        program = run(step, program, chip)
    require_settled(program, chip)
    return Lowered(program, layouts, controlled)


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


def run(step: Step, program: Program, chip: Chip) -> Program:
    """The program after one pass, checked if it changed. Raises CompileError that names the pass."""
    try:
        after = step.run(program, chip) if step.spares else step.run(program)
    except CompileError as error:
        raise type(error)(f"{error} (pass {step.name})") from error
    unchanged = len(after.ops) == len(program.ops) and all(a is b for a, b in zip(after.ops, program.ops))
    if not unchanged or after.outputs != program.outputs:
        _check(after, step.name, program)
    return after


def _check(program: Program, name: str, before: Program | None = None) -> None:
    try:
        check(program, before=before)
    except CompileError as error:
        raise CompileError(f"after the pass {name} the program is not well formed: {error}") from error
