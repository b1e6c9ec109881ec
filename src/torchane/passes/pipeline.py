"""Every pass at its place, with the reason for it, how far it moves numbers, and whether a program is legal without it.

    pass_list() ──► inline_constants, drop_dead, .., lower_layout, .., [control_ranges], .., name_constants, name_values

The list is made in one function. A pass may stand in it more than once; switched off by its name, it is left out everywhere.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torchane.abi.frozen import Constant
from torchane.abi.ports import PortLayout
from torchane.abi.ranges import Inputs, Ranges
from torchane.chips import Chip
from torchane.errors import UsageError, nearest
from torchane.mil.constants import inline_constants
from torchane.mil.ir import Program
from torchane.mil.name_constants import name_constants
from torchane.passes.bake_constants import Frozen, bake_constants
from torchane.passes.control_ranges import control_ranges
from torchane.passes.decompose_activations import decompose_activations
from torchane.passes.decompose_arithmetic import decompose_arithmetic
from torchane.passes.decompose_moves import decompose_moves
from torchane.passes.decompose_norms import decompose_norms
from torchane.passes.decompose_reductions import decompose_reductions
from torchane.passes.drop_dead import drop_dead
from torchane.passes.drop_noops import drop_noops
from torchane.passes.fold_constants import fold_constants
from torchane.passes.layout import lower_layout
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


@dataclass
class Job:
    """What the passes of one program know besides it, and what they find out.

    ports: the layouts that are settled, by name. weights: names of ports that hold trained tensors or their gradients. inputs: what
    is known of the inputs, where range control is asked for. frozen: weights that become constants. layouts, ranges and constants: found by
    the passes.
    """

    chip: Chip
    ports: Mapping[str, PortLayout | None] = field(default_factory=dict)
    weights: Collection[str] = ()
    inputs: Inputs | None = None
    layouts: Mapping[str, PortLayout] = field(default_factory=dict)
    ranges: Ranges | None = None
    frozen: Frozen | None = None
    constants: tuple[Constant, ...] = ()


@dataclass(frozen=True)
class Pass:
    """A pass at its place. why: it stands there. moves: how far it may move numbers; empty: it keeps the bits. needed: why no chip
    would take the program without it, so that it cannot be switched off; empty: it can. changes_ports: the signature
    after it is another one."""

    name: str
    apply: Callable[[Program, Job], Program]
    why: str
    moves: str = ""
    needed: str = ""
    changes_ports: bool = False


def plain(run: Callable[[Program], Program], why: str, *, moves: str = "", needed: str = "") -> Pass:
    """A pass that is the same for every chip."""
    return Pass(run.__name__, lambda program, job: run(program), why, moves, needed)


def for_chip(run: Callable[[Program, Chip], Program], why: str, *, moves: str = "", needed: str = "") -> Pass:
    """A pass that leaves alone what the chip takes as it is."""
    return Pass(run.__name__, lambda program, job: run(program, job.chip), why, moves, needed)


_REWRITTEN = "no chip is known to take all of the ops that it rewrites"
_ROUNDS = "not in exact numbers; in fp16 each op rounds once where the native op rounds at the end"


def pass_list(*, control: bool = False, baked: bool = False, without: Collection[str] = ()) -> tuple[Pass, ...]:
    """The passes of a program in their order.

    control: range control is asked for. baked: weights become constants. without: names of passes that are left out, for debugging. Raises UsageError for a name that
    no pass has and for a pass that cannot be left out, with the reason.
    """
    passes = (*_before_layout(), _layout(), *_after_layout(control, baked))
    named = {one.name: one for one in (*passes, _control(), _bake())}
    for name in without:
        if name not in named:
            raise UsageError(f"without: no pass is called {name!r}{nearest(name, named)}. The passes are {', '.join(named)}.")
        if named[name].needed:
            raise UsageError(f"without: {name} cannot be left out: {named[name].needed}.")
    return tuple(one for one in passes if one.name not in without)


def _before_layout() -> tuple[Pass, ...]:
    """From any op in PyTorch's shapes to few kinds of ops."""
    return (
        plain(inline_constants, "rules look at constants where they are read", needed="every other pass looks for constants in the arguments that read them"),
        plain(drop_dead, "nothing that nobody reads costs the passes below anything, or is refused"),
        plain(fold_constants, "masks made of ranges and comparisons become numbers before anything is rewritten"),
        for_chip(decompose_norms, "norms become means and powers, which the passes below take on", moves=_ROUNDS, needed=_REWRITTEN),
        for_chip(decompose_activations, "before bools and arithmetic: some become comparisons, minima and absolutes",
                 moves="erf by 2.9e-4, gelu by 3e-4 * |x| / 2, softplus by 9e-5; the others not in exact numbers", needed=_REWRITTEN),
        plain(scale_squares, "while a mean is still a mean; norms are written out by now",
              moves="constants are rounded once; in fp16 a sum of squares is right to 2^-9"),
        for_chip(decompose_reductions, "means become sums; some become absolutes and roots",
                 moves="1 / n by 2^-12 of itself; numbers below 2^(k - 14) by 2^(k - 25) where a long mean is taken of x * 2^-k", needed=_REWRITTEN),
        for_chip(lower_bools, "after all that makes comparisons, before minima are written as maxima",
                 moves="-inf in a literal choice becomes -30000; finite values keep their bits", needed=_REWRITTEN),
        for_chip(decompose_arithmetic, "the last of the decompositions: what they share",
                 moves="not in exact numbers; in fp16 roots, reciprocals and rsqrt round once more", needed=_REWRITTEN),
        for_chip(decompose_moves, "everything that moves elements becomes slices, joins, pads and reshapes", needed=_REWRITTEN),
        plain(sink_expands, "products are taken apart whole only if no stretching stands between their factors"),
        plain(drop_dead, "stretched values that nobody reads any more are no second reader of a product"),
        plain(drop_noops, "x * 1 and x + 0 are no factors; moves that meet become one", moves="the sign of a zero"),
        plain(merge_duplicates, "equal factors are recognised as equal"),
        plain(spread_powers, "after all that makes powers; products are whole now",
              moves="a product of constants is rounded once; in fp16 products round in another order"),
        for_chip(lower_selections, "slices, joins and pads of one value become one product, as far as it goes",
                 moves="the sign of a zero", needed="no chip is sure to take concat or pad"),
        for_chip(split_sums, "after all that makes products; the layout joins its moves with others",
                 moves="a sum that is longer than the chip's matmul takes is rounded to fp16 in parts"),
        plain(fold_constants, "constants that met on the way"),
        plain(drop_noops, "what the rewriting left", moves="the sign of a zero"),
        plain(merge_duplicates, "what the rewriting made twice: x * r of a norm and of its gradient"),
        plain(drop_dead, "the layout weighs every op that it sees"),
        plain(settle_outputs, "the layout wants outputs that are no inputs", needed=_SETTLED),
    )  # fmt: skip


def _layout() -> Pass:
    def apply(program: Program, job: Job) -> Program:
        multiple = job.chip.limit("port_row_multiple")
        program, job.layouts = lower_layout(program, job.ports, weights=job.weights, multiple=multiple, longest=job.chip.longest_axis)
        return program

    return Pass(
        lower_layout.__name__, apply, "PyTorch's shapes become rank 4, channels first; needs the ports", "sums may be taken in another order",
        needed="a port is of rank 4, and its rows are a multiple of 64 bytes", changes_ports=True,
    )  # fmt: skip


def _after_layout(control: bool, baked: bool) -> tuple[Pass, ...]:
    """From rank 4 to the form that is emitted."""
    return (
        for_chip(lower_row_slices, "which axis lies in rows is known only now",
                 needed="some chips turn values above 4094 into inf in a slice of a row that does not begin at 0"),
        plain(fold_constants, "reshaped constants"),
        plain(drop_noops, "views that meet become one", moves="the sign of a zero"),
        plain(merge_duplicates, "equal views of one value"),
        plain(drop_dead, "what those left"),
        *((_control(),) if control else ()),
        *(_baked() if baked else ()),
        plain(settle_outputs, "merging may have given an output another reader", needed=_SETTLED),
        plain(name_constants, "the form that is emitted; every pass above wants constants inline",
              needed="engines' compilers do not take literals as arguments on every route"),
        plain(name_values, "last: names that sort, and that do not depend on where the program came from",
              needed="compilers bind surfaces in the order of the sorted names"),
    )  # fmt: skip


_SETTLED = "an output that other ops read, or that is an input, is computed wrongly or refused"


def _baked() -> tuple[Pass, ...]:
    return (
        _bake(),
        plain(drop_noops, "views around convolutions meet those that were there", moves="the sign of a zero"),
        plain(drop_dead, "views of what is a constant now"),
    )


def _bake() -> Pass:
    """Only where frozen weights are to be constants."""

    def apply(program: Program, job: Job) -> Program:
        assert job.frozen is not None
        program, job.constants = bake_constants(program, job.chip, job.frozen, job.layouts)
        return program

    return Pass(
        bake_constants.__name__, apply, "weights are inputs to every pass above, which look at shapes alone", "sums may be taken in another order",
        needed='the option frozen asks for it; frozen="inputs" leaves it out', changes_ports=True,
    )  # fmt: skip


def _control() -> Pass:
    """Only where range control is asked for."""

    def apply(program: Program, job: Job) -> Program:
        program, job.ranges = control_ranges(program, job.chip, job.inputs)
        return program

    return Pass(
        control_ranges.__name__, apply, "before outputs are settled, which it gives other readers; after all that moves or merges ops",
        "only what falls below or above fp16's range on the way", needed="the option ranges asks for it; ranges=\"off\" leaves it out", changes_ports=True,
    )  # fmt: skip
