"""A Plan: one compiled graph as data. What runs where, in which order, in which surfaces.

    Stage ──► Dispatch ──► Dispatch ──► Unstage ──► HostCall ──► ...
    host values -> surfaces   programs on the device   surfaces -> host values   torch on the host

Values carry the names of the captured graph. A value lives on the host (a tensor), in a surface, or
both; `Stage` and `Unstage` are the only steps that move it. Equal programs are listed once and
dispatched as often as layers need them. A Plan holds no tensors and no callables: it can be printed,
compared and tested; `runtime.execute` runs it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torchane.abi.frozen import Constant
from torchane.abi.passes import PassRun
from torchane.abi.ports import PortLayout
from torchane.abi.ranges import Ranges


@dataclass(frozen=True)
class PortSpec:
    """One input or output of a program: its name in the text and how a value lies in it."""

    name: str
    layout: PortLayout

    @property
    def size_bytes(self) -> int:
        """Bytes of the surface."""
        return self.layout.type.size_bytes


@dataclass(frozen=True)
class ProgramSpec:
    """A legal program: its MIL text, its weight files, its ports in the order of the text. With `ranges`, the text has a
    port for multipliers behind its inputs and, where anything is measured, one for statistics behind its outputs. passes: what
    each did, with times, so no part of what a program is. constants: frozen weights, which the text finds in a file of their own: it is
    written, and the program loaded, for each group of weights that a dispatch names (runtime/frozen.py)."""

    name: str
    text: str
    blobs: Mapping[str, bytes] = field(repr=False)
    inputs: tuple[PortSpec, ...]
    outputs: tuple[PortSpec, ...]
    op_counts: Mapping[str, int]
    macs: int
    ranges: Ranges | None = None
    passes: tuple[PassRun, ...] = field(default=(), repr=False, compare=False)
    constants: tuple[Constant, ...] = ()


@dataclass(frozen=True)
class Part:
    """Where a value lies in a larger one on the host: in `whole`, of that shape, along `axis` from `start` on. is_last:
    with it the whole is complete."""

    whole: str
    shape: tuple[int, ...]
    axis: int
    start: int
    is_last: bool


@dataclass(frozen=True)
class Copy:
    """A value that crosses the boundary between the host and a surface, and how it lies there.

    is_mask: what lies below fp16's range, as -inf in an additive mask does, is staged as a score that no
    softmax keeps, since -inf minus -inf is NaN. masks: factors that masks were multiplied by, whose multiples are staged so,
    too, with their signs. is_unscaled: under range control, it is staged as it is. part: unstaged, it
    goes straight into a larger value, and has no tensor of its own.
    is_weight: a parameter, whose surface lives on. A forward stages it in every run. is_kept: of a backward, whose forward staged it
    already: it is staged again only where another run has filled the surface since (runtime/weights.py). is_lent: a frozen weight that is staged for
    each use, and whose surface goes back to the pool after it. is_constant: a frozen weight that
    programs hold: nothing is copied, and programs are made anew where its numbers have changed.
    """

    value: str
    layout: PortLayout
    is_weight: bool = False
    is_mask: bool = False
    is_unscaled: bool = False
    part: Part | None = None
    masks: tuple[float, ...] = ()
    is_kept: bool = False
    is_constant: bool = False
    is_lent: bool = False

    @property
    def stays(self) -> bool:
        """It is a weight that has a surface of its own."""
        return self.is_weight and not self.is_constant and not self.is_lent


@dataclass(frozen=True)
class Stage:
    """Host values are rounded to fp16 into surfaces of the same names; gradients are first multiplied by the loss scale."""

    copies: tuple[Copy, ...]


@dataclass(frozen=True)
class Dispatch:
    """One run of a program: the values in its inputs and outputs, in the order of its ports. constants: the frozen weights that it holds, in
    the order of the program's `constants`."""

    program: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    where: str = ""  # the module that this run computes, for people
    constants: tuple[str, ...] = ()

    def read(self, program: ProgramSpec) -> tuple[str, ...]:
        """All that it reads, in the order in which the program was lowered: inputs, and constants at their places among them."""
        baked = {constant.position: name for constant, name in zip(program.constants, self.constants, strict=True)}
        rest = iter(self.inputs)
        return tuple(baked[i] if i in baked else next(rest) for i in range(len(self.inputs) + len(baked)))


@dataclass(frozen=True)
class Unstage:
    """Surfaces are widened into host tensors; gradients are divided by the loss scale."""

    copies: tuple[Copy, ...]


@dataclass(frozen=True)
class HostCall:
    """Ops that no program holds, run by PyTorch: `key` finds the callable, `ops` says what it runs and why. makes_weights: it makes numbers of
    weights that are kept in few bits, and nothing else: it draws no random numbers and writes nothing in place."""

    key: str
    ops: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    makes_weights: bool = False


Step = Stage | Dispatch | Unstage | HostCall


@dataclass(frozen=True)
class Plan:
    """A graph: named inputs come in, steps run in order, named outputs leave.

    `outputs` holds None where the graph gives no value: `literals` has what leaves there instead, where
    that is not None (a size, a flag), by position. rounded: inputs that programs hold in few bits, and the form: whoever
    computes with one outside takes the numbers that programs have. An output whose position is in `kept` leaves as its
    surface (fp16, as it lies), for a later graph that lists it in `surfaces_in`. `gradients` names every value that programs
    hold multiplied by the loss scale, which applies where they cross the boundary. is_backward: it reads the weights that a forward staged.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str | None, ...]
    programs: tuple[ProgramSpec, ...]
    steps: tuple[Step, ...]
    kept: frozenset[int] = frozenset()
    surfaces_in: Mapping[str, PortLayout] = field(default_factory=dict)
    gradients: frozenset[str] = frozenset()
    literals: Mapping[int, int | float | bool] = field(default_factory=dict)
    is_backward: bool = False
    rounded: Mapping[str, str] = field(default_factory=dict)

    @property
    def dispatches(self) -> tuple[Dispatch, ...]:
        return tuple(step for step in self.steps if isinstance(step, Dispatch))

    @property
    def host_ops(self) -> tuple[tuple[str, str], ...]:
        """Every op that PyTorch runs on the host, with the reason."""
        return tuple(op for step in self.steps if isinstance(step, HostCall) for op in step.ops)

    @property
    def kept_names(self) -> frozenset[str]:
        return frozenset(self.outputs[position] for position in self.kept)

    def op_counts(self) -> Counter[str]:
        """MIL ops that one run executes on the device, by kind, constants not counted."""
        total: Counter[str] = Counter()
        for dispatch in self.dispatches:
            total.update(self.programs[dispatch.program].op_counts)
        return total

    @property
    def macs(self) -> int:
        """Multiply-adds of one run on the device."""
        return sum(self.programs[dispatch.program].macs for dispatch in self.dispatches)

    def last_uses(self) -> tuple[tuple[str, ...], ...]:
        """For each step, the surfaces that nothing reads after it and that do not leave the plan."""
        last: dict[str, int] = {}
        for index, step in enumerate(self.steps):
            for name in surfaces_of(step):
                last[name] = index
        freed: list[list[str]] = [[] for _ in self.steps]
        kept = self.kept_names
        for name, index in last.items():
            if name not in kept and name not in self.surfaces_in:
                freed[index].append(name)
        return tuple(map(tuple, freed))

    def last_reads(self) -> tuple[tuple[str, ...], ...]:
        """For each step, the host values that nothing reads after it: what the host or programs made, and what does not leave the plan."""
        last: dict[str, int] = {}
        for index, step in enumerate(self.steps):
            if isinstance(step, HostCall):
                read: Iterable[str] = (*step.inputs, *step.outputs)
            elif isinstance(step, Dispatch):
                read = step.constants
            else:
                read = [name for copy in step.copies for name in (copy.value, *((copy.part.whole,) if copy.part else ()))]
            last |= dict.fromkeys(read, index)
        stays = {*self.inputs, *self.outputs}
        dropped: list[list[str]] = [[] for _ in self.steps]
        for name, index in last.items():
            if name not in stays:
                dropped[index].append(name)
        return tuple(map(tuple, dropped))

    def __str__(self) -> str:
        lines = [
            f"plan {self.name}: {len(self.programs)} programs, {len(self.dispatches)} dispatches, "
            f"{self.macs / 1e9:.3f} G multiply-adds, {len(self.host_ops)} host ops"
        ]
        for index, program in enumerate(self.programs):
            runs = sum(dispatch.program == index for dispatch in self.dispatches)
            ports = sum(port.size_bytes for port in (*program.inputs, *program.outputs))
            held = f", {len(program.constants)} constants" if program.constants else ""
            lines.append(
                f"  program {index} {program.name}: {sum(program.op_counts.values())} ops, {len(program.inputs)} inputs, "
                f"{len(program.outputs)} outputs, {ports / 2**20:.2f} MiB of surfaces{held}, run {runs} times"
            )
        for index, step in enumerate(self.steps):
            lines.append(f"  {index:3d} {describe(step, self)}")
        return "\n".join(lines)


def surfaces_of(step: Step) -> tuple[str, ...]:
    """The surfaces that a step reads or writes."""
    if isinstance(step, Dispatch):
        return (*step.inputs, *step.outputs)
    if isinstance(step, Stage | Unstage):
        return tuple(copy.value for copy in step.copies if not copy.is_constant)
    return ()


def describe(step: Step, plan: Plan) -> str:
    """One line for people."""
    if isinstance(step, Dispatch):
        return f"dispatch {plan.programs[step.program].name} for {step.where or '(no module)'}: {len(step.inputs)} in, {len(step.outputs)} out"
    if isinstance(step, HostCall):
        return f"host     {', '.join(name for name, _ in step.ops)}"
    verb = "stage   " if isinstance(step, Stage) else "unstage "
    weights = sum(copy.is_weight and not copy.is_constant for copy in step.copies)
    constants = sum(copy.is_constant for copy in step.copies)
    kept = sum(copy.is_kept and not copy.is_constant for copy in step.copies)
    left = f", {kept} of them where they are no longer as the forward left them" if kept else ""
    shown = [copy.value for copy in step.copies if not copy.is_weight]
    held = f", {constants} constants where they have changed" if constants else ""
    return f"{verb} {weights} weights{left}{held}; {', '.join(shown[:8])}{', ...' if len(shown) > 8 else ''}"
