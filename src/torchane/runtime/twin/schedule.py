"""The steps of a program on the twin, in an order, before they are written to a tape.

    ops ──► Schedule.add(step), .element_wise(micro) ──► steps ──► arena ──► tape

An element-wise op joins the chain that computes one of its operands where it can: if all its other operands
are there by then, or if the chain can wait until they are.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from torchane.runtime.twin.arrays import Array, Root, TapeStep
from torchane.runtime.twin.chain import Geometry, Micro, chain_geometry, emit_chain

#: A chain grows no longer than this: its values must fit the nearest cache together.
LONGEST_CHAIN = 24


@dataclass(eq=False)
class Call:
    """One step of csrc/steps.h: `method` of the tape, given `places` and `values`."""

    ops: list[str]
    method: str
    x: tuple[Array, ...]
    out: Array
    values: dict[str, Any]
    key: int = 0

    @property
    def reads(self) -> tuple[Array, ...]:
        return self.x

    @property
    def writes(self) -> tuple[Array, ...]:
        return (self.out,)

    @property
    def aside(self) -> tuple[Array, ...]:
        return ()

    def emit(self, tape: Any) -> None:
        places = {name: array.place for name, array in zip("xy", self.x)}
        getattr(tape, self.method)(self.ops, **places, out=self.out.place, **self.values)


@dataclass(eq=False)
class Chain:
    """Element-wise ops that run block by block; `geometry` is how all of them see their operands. tabulated: MIL ops that
    tables (tables.py) stand for, besides those of the micros."""

    micros: list[Micro]
    geometry: Geometry
    key: int = 0
    tabulated: list[str] = field(default_factory=list)

    @property
    def ops(self) -> list[str]:
        return [op for op in (*(micro.op for micro in self.micros), *self.tabulated) if op]

    @property
    def reads(self) -> tuple[Array, ...]:
        """What comes from outside."""
        own = {micro.out.root for micro in self.micros}
        return tuple(array for micro in self.micros for array in micro.inputs if array.root not in own)

    @property
    def writes(self) -> tuple[Array, ...]:
        """What leaves the chain; the rest never reaches memory."""
        return tuple(micro.out for micro in self.micros if self._leaves(micro.out.root))

    @property
    def aside(self) -> tuple[Array, ...]:
        return ()

    def _leaves(self, root: Root) -> bool:
        return root.space != 0 or any(reader is not self for reader in root.readers)

    def leaves_or_is_read(self, root: Root, without: Collection[int]) -> bool:
        """Somebody reads the result of a micro besides these, by index."""
        return self._leaves(root) or any(array.root is root for index, one in enumerate(self.micros) if index not in without for array in one.inputs)

    def emit(self, tape: Any) -> None:
        emit_chain(tape, self.ops, self.micros, self.geometry, {array.root for array in self.writes})


@dataclass
class Schedule:
    """Collects steps. Nothing is placed in memory yet. `arithmetic`: in which the steps will be computed. `constant`: the
    Array of a number that a rule needs in memory."""

    arithmetic: str = "exact"
    constant: Callable[[float], Array] | None = None
    steps: list[TapeStep] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    _last_key: int = 0

    def add(self, step: TapeStep) -> None:
        self._last_key += 1
        step.key = self._last_key
        self.steps.append(step)
        self._link(step, step.reads, (array.root for array in step.writes))

    def element_wise(self, micro: Micro) -> Array:
        """Adds the op to a chain, or begins one. Returns its result."""
        writers = {id(step): step for array in micro.inputs for step in array.root.writers}
        for step in sorted(writers.values(), key=lambda step: -step.key):
            if isinstance(step, Chain) and self._join(step, micro):
                return micro.out
        geometry = chain_geometry([micro])
        assert geometry is not None, f"{micro.op}: an op alone has a geometry"
        chain = Chain([micro], geometry)
        self.add(chain)
        self._link(chain, micro.inputs, [micro.out.root])
        return micro.out

    def ordered(self) -> list[TapeStep]:
        return sorted(self.steps, key=lambda step: step.key)

    def _join(self, chain: Chain, micro: Micro) -> bool:
        if len(chain.micros) >= LONGEST_CHAIN:
            return False
        own = {one.out.root for one in chain.micros}
        if any(array.root in own and not array.is_whole for array in micro.inputs):
            return False
        ready = max((step.key for array in micro.inputs for step in array.root.writers), default=0)
        if ready > chain.key and any(reader.key > chain.key for root in own for reader in root.readers):
            return False
        geometry = chain_geometry([*chain.micros, micro])
        if geometry is None:
            return False
        chain.micros.append(micro)
        chain.geometry = geometry
        self._link(chain, micro.inputs, [micro.out.root])
        if ready > chain.key:
            self._last_key += 1
            chain.key = self._last_key
        return True

    @staticmethod
    def _link(step: TapeStep, reads: Iterable[Array], written: Iterable[Root]) -> None:
        for array in reads:
            if step not in array.root.readers:
                array.root.readers.append(step)
        for root in written:
            if step not in root.writers:
                root.writers.append(step)
