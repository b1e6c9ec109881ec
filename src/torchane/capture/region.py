"""From a region of a captured graph to a legal program, lowered once for all regions of equal structure.

    region ── rules ──► natural MIL ── passes ──► legal MIL ── emit ──► text and blobs

Two regions are equal when their ops, constants, shapes, ports and given layouts are, whatever their
names: the structure decides, not the module that it came from.
"""

import hashlib
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import fx

from torchane import passes
from torchane.abi.frozen import FROZEN_PATH
from torchane.abi.numbers import EXCLUDED, FP16_MAX, LEFT_OUT, MASKED
from torchane.abi.ports import PortLayout
from torchane.abi.ranges import Inputs
from torchane.capture.constants import Constants
from torchane.capture.graph import Cut, Region
from torchane.capture.lowered import LoweredPrograms
from torchane.capture.progress import Progress
from torchane.capture.rules import RULES
from torchane.capture.sources import place_of
from torchane.chips import Chip
from torchane.errors import CaptureError, CompileError, TorchaneWarning
from torchane.mil import emit
from torchane.mil.build import Builder, typed
from torchane.mil.ir import Literal, Op, Program, Var
from torchane.mil.types import FP16, TensorType
from torchane.passes.bake_constants import Pays
from torchane.plan import PortSpec, ProgramSpec
from torchane.plan.step_graph import Place


#: Numbers of a constant that are rounded at once, so that what is made of a mask of all pairs of tokens on the way is little.
_PIECE = 1 << 20


@dataclass(frozen=True)
class Ports:
    """What a region reads and gives, as graph nodes, in the order of its program's ports."""

    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Known:
    """What range control must know of nodes: those stored as they are, of these those that no program computed, and those
    linear in the incoming gradients."""

    unscaled: frozenset[fx.Node] = frozenset()
    static: frozenset[fx.Node] = frozenset()
    gradients: frozenset[fx.Node] = frozenset()

    def of(self, node: fx.Node) -> tuple[bool, bool, bool]:
        return node in self.unscaled, node in self.static, node in self.gradients

    def inputs(self, ports: Ports, names: Mapping[fx.Node, str]) -> Inputs:
        def named(nodes: frozenset[fx.Node]) -> frozenset[str]:
            return frozenset(names[node] for node in ports.inputs if node in nodes)

        return Inputs(named(self.unscaled), named(self.static), named(self.gradients))


class RegionError(CaptureError):
    """What cannot be lowered, and which nodes it concerns."""

    def __init__(self, text: str, nodes: Sequence[fx.Node]):
        super().__init__(text)
        self.nodes = tuple(nodes)


@dataclass(frozen=True)
class _Refused:
    """Why a region of some structure was refused, and which of its ops by their positions."""

    reason: str
    positions: tuple[int, ...]


@dataclass
class RegionCompiler:
    """Lowers regions for one chip and remembers what it lowered: programs by their text and ports.
    `again` gives one with no programs yet. ranges: programs are range-controlled. stored: what other processes lowered.
    progress: who is told. without: passes that are left out. frozen: the option; pays, machine: whether a
    product with a constant is a convolution, on which machine."""

    chip: Chip
    ranges: bool = False
    stored: LoweredPrograms | None = None
    progress: Progress | None = None
    without: Collection[str] = ()
    frozen: str = "inputs"
    pays: Pays = field(default=lambda inner, outer, columns: True)
    machine: str = ""
    programs: list[ProgramSpec] = field(default_factory=list, init=False)
    lowered_regions: int = field(default=0, init=False)
    _memory: "dict[str, ProgramSpec | _Refused]" = field(default_factory=dict)
    _blobs: dict[bytes, bytes] = field(default_factory=dict)  # equal ones are one: the causal mask of two kinds of layers
    _by_text: dict[tuple[Any, ...], int] = field(default_factory=dict, init=False)
    _by_structure: dict[str, tuple[int, ProgramSpec]] = field(default_factory=dict, init=False)

    def again(self) -> "RegionCompiler":
        """One for the next attempt at the same graph: no programs in it yet, and what was lowered is not lowered again."""
        return replace(self, _memory=self._memory, _blobs=self._blobs)

    def cut(self, cut: Cut) -> Cut:
        """The graph as it is about to be lowered, unchanged: who is told learns of it."""
        if self.progress is not None:
            self.progress.cut(cut)
        return cut

    def compile(
        self,
        cut: Cut,
        region: Region,
        ports: Ports,
        given: Mapping[fx.Node, PortLayout],
        weights: Collection[fx.Node],
        constants: Constants,
        known: Known = Known(),
        frozen: Mapping[fx.Node, str] = MappingProxyType({}),
    ) -> tuple[int, ProgramSpec]:
        """The index of the program that computes a region, and the region's own view of it.

        An elementwise program has one text for values that lie in different orders of their axes: the layouts of the ports are the
        region's, and may be others than those of the region that the program was first compiled for.

        given: layouts that surfaces already have. weights: ports that hold parameters or their
        gradients. known: what range control needs. frozen: ports that are constants instead, and the form whose numbers they have. Raises RegionError, with the region's module, where no legal form exists.
        """
        structure = structure_of(cut, region, ports, given, weights, constants, known, (frozen, self.machine))
        if structure not in self._by_structure:
            spec = self._remembered(structure, region, lambda: self._lower(cut, region, ports, given, weights, constants, known, frozen))
            if frozen and not spec.constants:
                self._say_inputs(region, len(frozen))
            key = (spec.text, spec.ranges, spec.constants)  # the text says the hash of its constants (emit's tag)
            if key not in self._by_text:
                self._by_text[key] = len(self.programs)
                name = f"{len(self.programs):02d}_{(region.where or 'main').replace('.', '_')}"
                self.programs.append(replace(spec, name=name))
            self._by_structure[structure] = self._by_text[key], spec
        return self._by_structure[structure]

    def _say_inputs(self, region: Region, count: int) -> None:
        """That frozen weights are no constants of a program that reads them, once for each such program."""
        warnings.warn(
            f"{region.where or 'the model'}: its {count:,} frozen weights stay inputs of its program, as with options={{\"frozen\": \"inputs\"}}: as constants they "
            f"have no form there that {self.chip.title} is known to take. The numbers are the same, but they are staged in every forward.",
            TorchaneWarning, stacklevel=2,
        )  # fmt: skip

    def _remembered(self, structure: str, region: Region, lower: Callable[[], ProgramSpec]) -> ProgramSpec:
        """What a region of this structure was lowered to, here or in an earlier attempt; a refusal is remembered too."""
        if structure not in self._memory:
            try:
                spec = self._stored(structure) or self._lowered(structure, lower)
                self._memory[structure] = replace(spec, blobs={path: self._blobs.setdefault(data, data) for path, data in spec.blobs.items()})
            except RegionError as error:
                self._memory[structure] = _Refused(str(error), tuple(region.nodes.index(n) for n in error.nodes if n in region.nodes))
            except CompileError as error:
                where = region.where or "outside of layers"
                self._memory[structure] = _Refused(f"{where}: {error}", tuple(range(len(region.nodes))))
        found = self._memory[structure]
        if isinstance(found, _Refused):
            raise RegionError(found.reason, [region.nodes[i] for i in found.positions] or region.nodes)
        return found

    def _stored(self, structure: str) -> ProgramSpec | None:
        return None if self.stored is None else self.stored.get(structure)

    def _lowered(self, structure: str, lower: Callable[[], ProgramSpec]) -> ProgramSpec:
        spec = lower()
        self.lowered_regions += 1
        if self.stored is not None:
            self.stored.put(structure, spec)
        if self.progress is not None:
            self.progress.lowered()
        return spec

    def _lower(
        self,
        cut: Cut,
        region: Region,
        ports: Ports,
        given: Mapping[fx.Node, PortLayout],
        weights: Collection[fx.Node],
        constants: Constants,
        known: Known,
        frozen: Mapping[fx.Node, str],
    ) -> ProgramSpec:
        natural, names = natural_program(cut, region, ports, constants)
        layouts = {names[node]: given.get(node) for node in (*ports.inputs, *ports.outputs)}
        lowered = self._passed(natural, layouts, frozenset(names[node] for node in weights if node in names), known.inputs(ports, names), {names[node]: form for node, form in frozen.items()})
        text, blobs = emit(lowered.program, tag=True, later=(FROZEN_PATH,))
        baked = {constant.position for constant in lowered.constants}
        inputs = tuple(
            PortSpec(var.name, lowered.ports[natural_var.name])
            for var, natural_var in zip(lowered.program.inputs, (var for i, var in enumerate(natural.inputs) if i not in baked))
        )  # with ranges there is one more
        outputs = tuple(
            PortSpec(var.name, lowered.ports[natural_var.name])
            for var, natural_var in zip(lowered.program.outputs, natural.outputs)
        )
        computing = [op for op in lowered.program.ops if op.kind.name != "const"]
        counts = Counter(op.kind.name for op in computing)
        return ProgramSpec("", text, blobs, inputs, outputs, counts, macs_of(lowered.program), lowered.ranges, lowered.passes, lowered.constants)

    def _passed(
        self, natural: Program, layouts: Mapping[str, PortLayout | None], weights: frozenset[str], known: Inputs, frozen: Mapping[str, str]
    ) -> passes.Lowered:
        """Lowered with its constants; where that has no legal form, with all weights as inputs."""
        if frozen:
            ranges = replace(known, constants=frozenset(frozen)) if self.ranges else None
            try:
                return passes.lower(
                    natural, self.chip, layouts, weights=weights, ranges=ranges, frozen=passes.Frozen(frozen, self.pays), without=self.without
                )  # fmt: skip
            except CompileError:
                pass  # `compile` says so, from the disk's copy too; where it is not the constants that have no form, its reason is raised below
        return passes.lower(natural, self.chip, layouts, weights=weights, ranges=known if self.ranges else None, without=self.without)


def natural_program(
    cut: Cut, region: Region, ports: Ports, constants: Constants
) -> tuple[Program, dict[fx.Node, str]]:
    """The region in torch's own shapes, every float fp16, and the port name of each input and output node.

    Ports are numbered, so that equal regions give equal text.
    """
    builder = Builder(taken=(f"y{i}" for i in range(len(ports.outputs))))
    made: dict[fx.Node, Any] = {}
    for i, node in enumerate(ports.inputs):
        made[node] = builder.input(f"x{i}", tuple(node.meta["val"].shape))

    def value(node: fx.Node) -> Any:
        if node not in made:
            if cut.place[node] is Place.CONSTANT:
                made[node] = fp16_literal(constants.value(node))
            elif node.target is operator.getitem:
                made[node] = value(node.args[0])[node.args[1]]
            else:
                try:
                    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
                    made[node] = RULES[node.target](builder, *args, **kwargs)
                except RegionError:
                    raise
                except CompileError as error:
                    raise RegionError(f"{node.target}{place_of(node)}: {error}", [node]) from error
        return made[node]

    for node in region.nodes:
        value(node)
    outputs: list[Var] = []
    for node in ports.outputs:
        var = value(node)
        if isinstance(var, Literal) or var in builder.inputs or var in outputs:
            var = builder.identity(x=var)
        outputs.append(var)
    program = _renamed(builder.program(*outputs), {var: Var(f"y{i}", var.type) for i, var in enumerate(outputs)})
    names = {node: var.name for node, var in zip((*ports.inputs, *ports.outputs), (*program.inputs, *program.outputs))}
    return program, names


def _renamed(program: Program, new: Mapping[Var, Var]) -> Program:
    """The program with Vars replaced where they are defined and read."""
    ops = tuple(
        replace(op.reading(new), outputs=tuple(new.get(var, var) for var in op.outputs)) for op in program.ops
    )
    return program.with_(ops=ops, outputs=tuple(new.get(var, var) for var in program.outputs))


def fp16_literal(tensor: torch.Tensor) -> Literal:
    """A folded tensor as an fp16 constant; True is 1, -inf EXCLUDED, what is 1e6 or more in magnitude MASKED or its mirror.

    Raises CompileError for numbers between that and fp16's largest: they are no mask's, and fp16 has none in their place.
    """
    flat = tensor.detach().reshape(-1)
    made = np.empty(flat.shape, np.float16)
    for begin in range(0, len(made), _PIECE):
        array = flat[begin : begin + _PIECE].to(torch.float32).numpy()
        magnitude = np.abs(array)
        data = array[(magnitude > FP16_MAX) & (magnitude < -LEFT_OUT)]
        if data.size:
            raise CompileError(f"a constant holds {data.flat[0]:g}, and programs hold numbers up to 65504")
        beyond = np.where(np.isneginf(array), np.float32(EXCLUDED), np.copysign(np.float32(-MASKED), array))
        made[begin : begin + _PIECE] = np.where(magnitude >= -LEFT_OUT, beyond, array)
    return Literal(TensorType(FP16, tuple(tensor.shape)), made.reshape(tuple(tensor.shape)))


def structure_of(
    cut: Cut,
    region: Region,
    ports: Ports,
    given: Mapping[fx.Node, PortLayout],
    weights: Collection[fx.Node],
    constants: Constants,
    known: Known = Known(),
    frozen: tuple[Mapping[fx.Node, str], str] = (MappingProxyType({}), ""),
) -> str:
    """A digest of everything that the program depends on, names left out. frozen: ports that are constants, and the machine whose cost says how."""
    number = {node: f"in{i}" for i, node in enumerate(ports.inputs)}
    number.update({node: f"op{i}" for i, node in enumerate(region.nodes)})

    def written(arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            if arg in number:
                return number[arg]
            if cut.place[arg] is Place.CONSTANT:
                tensor = constants.value(arg)
                return ("const", str(tensor.dtype), tuple(tensor.shape), constants.digest(arg))
            return (str(arg.target), written(arg.args), written(arg.kwargs))
        if isinstance(arg, list | tuple):
            return tuple(written(item) for item in arg)
        if isinstance(arg, dict):
            return tuple((key, written(item)) for key, item in arg.items())
        return repr(arg)

    def port(node: fx.Node) -> tuple[Any, ...]:
        form = (frozen[0][node], frozen[1]) if node in frozen[0] else None
        return (tuple(node.meta["val"].shape), given.get(node), node in weights, known.of(node), form)

    parts = (
        [port(node) for node in ports.inputs],
        [(str(node.target), written(node.args), written(node.kwargs)) for node in region.nodes],
        [(written(node), port(node)) for node in ports.outputs],
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def macs_of(program: Program) -> int:
    """Multiply-adds of one run."""
    constants = {op.output: op.attrs["val"] for op in program.ops if op.kind.name == "const"}

    def macs(op: Op) -> int:
        op = op.reading(constants)
        return op.kind.macs({key: typed(op.kind, key, arg) for key, arg in op.args.items()})

    return sum(macs(op) for op in program.ops if op.kind.name != "const")
