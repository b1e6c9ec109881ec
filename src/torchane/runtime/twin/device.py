"""The twin: a device in software that runs the MIL text which an engine would be given.

    text, blobs ── parse, check ──► Program ── ops ──► steps ── arena ──► tape ── csrc ──► surfaces

A program becomes a tape once, at load; a run is one call into C++. In `exact` arithmetic products of fp16
numbers are exact, sums are kept in fp32, each op's result is rounded once to fp16, to nearest even; in
`engine` arithmetic every op follows the chip's own rules to the bit (mil/engine); `fast` rounds the operands of products to
bf16 (mil/fast.py). The bits are the same for any number of threads. Reference: mil/evaluate.py.
"""

import math
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from torchane import native
from torchane.chips import Chip, require_legal
from torchane.errors import DeviceError, TorchaneError, UsageError
from torchane.mil.blobs import BlobFile
from torchane.mil.build import arguments, typed
from torchane.mil.check import check
from torchane.mil.constants import inline_constants, load_blobs, unpack_constants
from torchane.mil.engine.fusion import silus
from torchane.mil.ir import Arg, Literal, Op, Program, Var
from torchane.mil.text import parse
from torchane.mil.types import FP16, TensorType
from torchane.native import pages
from torchane.runtime.device import Buffer, Limits, LoadedProgram, ProgramStats, Submitted, require_surface
from torchane.runtime.submissions import Submissions
from torchane.runtime.twin.arena import ALIGNMENT, place_scratch
from torchane.runtime.twin.arrays import CONSTANTS, FIRST_PORT, SCRATCH, Array, Root, TapeStep, dense_strides, new
from torchane.runtime.twin.attention import fuse_attention
from torchane.runtime.twin.chain import Micro
from torchane.runtime.twin.engine import prepare, require_known
from torchane.runtime.twin.ops import RULES, Unsupported
from torchane.runtime.twin.schedule import Call, Chain, Schedule
from torchane.runtime.twin.shared import SHARED, is_large
from torchane.runtime.twin.tables import tabulate
from torchane.runtime.twin.turned import turn, turnable
from torchane.runtime.twin.vocabulary import fuse_vocabulary

#: What numbers may mean; see mil/evaluate.py, mil/engine and mil/fast.py.
ARITHMETICS = ("exact", "engine", "fast")


@dataclass(frozen=True, eq=False)
class TwinBuffer:
    """A surface in the memory of the host."""

    type: TensorType
    array: np.ndarray
    capacity_bytes: int

    def look(self) -> np.ndarray:
        return self.array


@dataclass(frozen=True, eq=False)
class TwinProgram:
    """A program as a tape. traffic: bytes that each of its steps reads and writes, in their order; the last one is the ops that move nothing."""

    name: str
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    stats: ProgramStats
    tape: Any
    traffic: tuple[int, ...] = ()


class TwinDevice:
    """Runs programs one at a time; may be used from any thread. With a chip, refuses what that chip refuses."""

    name = "twin"
    #: Its numbers are right by definition.
    may_err = False
    #: Its kernels are the processor's work.
    frees_processor = False
    wrong_ops: Mapping[str, str] = MappingProxyType({})
    respell: Callable[[Program], Program] | None = None

    def __init__(self, chip: Chip | None = None, arithmetic: str = "exact"):
        if arithmetic not in ARITHMETICS:
            raise UsageError(f"no arithmetic of the twin is called {arithmetic!r}; there are {', '.join(ARITHMETICS)}.")
        self.chip = chip
        self.arithmetic = arithmetic
        if arithmetic == "engine":
            require_known(chip)
            prepare()
        if arithmetic == "fast" and not native.has_fast():
            raise UsageError(
                f'arithmetic "fast" needs instructions that multiply bf16 numbers (AVX512-BF16, AMX, FEAT_BF16 of arm64), and the twin uses {native.get_isa()} kernels '
                'here. Take "exact".'
            )
        self._executor = native.Executor()
        self._held: weakref.WeakSet[TwinProgram] = weakref.WeakSet()
        self._submissions = Submissions(self.run)

    @property
    def limits(self) -> Limits:
        """The chip's, where there is one; `load` refuses what breaks them with the chip's other rules. Memory alone ends the number of programs."""
        if self.chip is None:
            return Limits()
        return Limits(None, self.chip.limit("surfaces"), self.chip.limit("port_row_multiple"))

    @property
    def loaded(self) -> int:
        return len(self._held)

    @property
    def executed(self) -> Mapping[str, int]:
        """How often each MIL op was executed since the device was opened, constants left out."""
        return self._executor.executed

    def load(self, text: str, blobs: Mapping[str, bytes], *, name: str = "main") -> TwinProgram:
        try:
            parsed = parse(text, name)
            if self.chip is not None:  # as an engine is given it: its constants have names still
                require_legal(parsed, self.chip)
            program = _packed(parsed, blobs)
            check(program)
            program = unpack_constants(program)
        except TorchaneError as error:
            raise DeviceError(f"{name}: the twin cannot load this program. {error}") from error
        made = load_program(program, name, self.arithmetic)
        self._held.add(made)
        return made

    def allocate(self, type: TensorType, *, capacity_bytes: int = 0) -> TwinBuffer:
        require_surface(type, "a surface")
        if capacity_bytes <= type.size_bytes:
            return TwinBuffer(type, pages.zeros(type.shape, np.float16), type.size_bytes)  # type: ignore[arg-type]
        memory = pages.zeros((-(-capacity_bytes // 2),), np.float16)
        return TwinBuffer(type, memory[: type.size].reshape(type.shape), memory.nbytes)  # type: ignore[arg-type]

    def run(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> None:
        if not self._submissions.is_idle:
            self._submissions.drain()
        if not isinstance(program, TwinProgram):
            raise DeviceError(f"{program.name} was loaded by another device. Load it on the twin to run it there.")
        self.run_arrays(program, [b.array for b in inputs], [b.array for b in outputs])

    def run_arrays(self, program: TwinProgram, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """`run` on arrays of the ports' shapes: dense fp16, wherever they lie."""
        self._executor.run(program.tape, inputs, outputs)

    def confirm(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> bool:
        return False

    def submit(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> Submitted:
        return self._submissions.submit(program, inputs, outputs)

    def wait(self, submitted: Submitted) -> None:
        self._submissions.wait(submitted)

    def unload(self, program: LoadedProgram) -> None:
        """A program takes memory of the host alone, and gives it back when nobody holds it."""


def read_packed(text: str, blobs: Mapping[str, bytes], name: str) -> Program:
    """The program of a text, its constants inline and in memory; compressed ones as they are."""
    return _packed(parse(text, name), blobs)


def _packed(program: Program, blobs: Mapping[str, bytes]) -> Program:
    return inline_constants(load_blobs(program, lambda path: _weights(blobs, path)))


def read_program(text: str, blobs: Mapping[str, bytes], name: str) -> Program:
    """The program of a text, its constants inline, in memory and unpacked."""
    return unpack_constants(read_packed(text, blobs, name))


def load_program(program: Program, name: str, arithmetic: str = "exact") -> TwinProgram:
    """The tape of a program whose constants are inline and in memory."""
    return _Loader(program, name, arithmetic).load()


class _Loader:
    def __init__(self, program: Program, name: str, arithmetic: str):
        self.program = program
        self.name = name
        self.schedule = Schedule(arithmetic, lambda number: self._constant(Literal(TensorType(FP16, ()), np.array(number, np.float16))))
        self.silus = silus(program.main) if arithmetic == "engine" else {}
        self.fused = {*self.silus, *(sigmoid.output for sigmoid in self.silus.values())}
        self.values: dict[Var, Array] = {}
        self.constants: dict[Literal, Array] = {}
        self.constants_size = 0

    def load(self) -> TwinProgram:
        program = self.program
        for index, var in enumerate(program.inputs):
            self._require(var, "input")
            self.values[var] = Array(Root(math.prod(var.shape), FIRST_PORT + index), var.shape)  # type: ignore[arg-type]
        counts: Counter[str] = Counter()
        macs = 0
        for op in program.ops:
            self._op(op)
            if op.kind.name != "const":
                counts[op.kind.name] += 1
                macs += op.kind.macs({key: typed(op.kind, key, arg) for key, arg in arguments(op).items()})
        for index, var in enumerate(program.outputs):
            self._output(self.values[var], FIRST_PORT + len(program.inputs) + index)
        held, packed = self._placed_constants(FIRST_PORT + len(program.inputs) + len(program.outputs))
        numbers = {array.root: literal.value for literal, array in self.constants.items()}
        steps = fuse_attention(self.schedule.ordered(), numbers, self.schedule.arithmetic)  # type: ignore[arg-type]
        steps = fuse_vocabulary(steps, numbers, self.schedule.arithmetic)  # type: ignore[arg-type]
        packed = self._with_tables(steps, numbers, packed)  # type: ignore[arg-type]
        scratch = place_scratch(steps)
        tape = native.Tape(
            name=self.name,
            inputs=[var.shape for var in program.inputs],
            outputs=[var.shape for var in program.outputs],
            constants=packed,
            scratch=scratch,
            arithmetic=self.schedule.arithmetic,
            shared=held,
        )
        for step in steps:
            step.emit(tape)
        tape.alias(self.schedule.aliases)
        return TwinProgram(
            self.name,
            tuple(var.type for var in program.inputs),  # type: ignore[misc]
            tuple(var.type for var in program.outputs),  # type: ignore[misc]
            ProgramStats(
                ops=counts.total(),
                float_ops=dict(counts),
                macs=macs,
                constant_bytes=self.constants_size * FP16.bits // 8,
                scratch_bytes=scratch * FP16.bits // 8,
            ),
            tape,
            (*(sum(array.size * FP16.bits // 8 for array in (*step.reads, *step.writes)) for step in steps), 0),
        )

    def _with_tables(self, steps: Sequence[TapeStep], numbers: Mapping[Root, np.ndarray], packed: np.ndarray) -> np.ndarray:
        """Functions of one number become tables (tables.py), which lie behind the other constants."""
        tables: list[np.ndarray] = []

        def place(table: np.ndarray) -> Array:
            known = next((index for index, one in enumerate(tables) if one.tobytes() == table.tobytes()), len(tables))
            if known == len(tables):
                tables.append(table)
            return Array(Root(table.size, CONSTANTS, packed.size + known * table.size), table.shape)

        for step in steps if self.schedule.arithmetic != "engine" else ():
            if isinstance(step, Chain):
                tabulate(step, numbers, place)
        return np.concatenate([packed, *tables]) if tables else packed

    def _op(self, op: Op) -> None:
        for var in op.outputs:
            self._require(var, f"op {op.name}")
        if op.kind.name == "const":
            self.values[op.output] = self._constant(op.attrs["val"])
            return
        if self.fused.intersection(op.outputs):
            self._fused(op)
            return
        rule = RULES.get(op.kind.name)
        if rule is None:
            raise DeviceError(
                f"{self.name}: op {op.name}: the twin has no kernel for {op.kind.name}. It runs {', '.join(sorted(RULES))}; "
                "the passes lower everything else to these."
            )
        try:
            results = rule(self.schedule, op, **{key: self._argument(op, key, arg) for key, arg in arguments(op).items()})
        except Unsupported as why:
            raise DeviceError(f"{self.name}: op {op.name} ({op.kind.name}) has no kernel on the twin: {why}.") from why
        self.values.update(zip(op.outputs, results if isinstance(results, tuple) else (results,), strict=True))

    def _fused(self, op: Op) -> None:
        """A product of x and sigmoid(x), which the engine computes as one silu; the sigmoid costs nothing then."""
        if op.output not in self.silus:
            self.schedule.aliases.append(op.kind.name)
            return
        x = self.values[self.silus[op.output].args["x"]]  # type: ignore[index]
        silu = Micro(op.kind.name, "unary", "silu", (x,), new(op.output.shape))  # type: ignore[arg-type]
        self.values[op.output] = self.schedule.element_wise(silu)

    def _argument(self, op: Op, key: str, arg: Arg) -> Any:
        if isinstance(arg, tuple):
            return tuple(self._argument(op, key, item) for item in arg)
        if isinstance(arg, Var):
            return self.values[arg]
        if key in op.kind.operands:
            self._require(arg, f"op {op.name}")
            return self._constant(arg)
        return arg.python()

    def _constant(self, literal: Literal) -> Array:
        array = literal.value
        assert isinstance(array, np.ndarray), "constants are in memory"
        if literal not in self.constants:
            self.constants[literal] = Array(Root(array.size, CONSTANTS), array.shape)
            self.constants_size += -(-array.size // ALIGNMENT) * ALIGNMENT
        return self.constants[literal]

    def _placed_constants(self, first_space: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """Large constants, which programs share, each in a space of its own from this one on; and all others one behind the other."""
        turns = {} if self.schedule.arithmetic == "engine" else turnable(self.constants.values())
        held: list[np.ndarray] = []
        small: list[tuple[Array, np.ndarray]] = []
        size = 0
        for literal, array in self.constants.items():
            value: np.ndarray = literal.value  # type: ignore[assignment]
            found, is_turned = SHARED.of(value, turns.get(array))
            if is_turned:
                turn(array)
            if is_large(found):
                array.root.space = first_space + len(held)
                held.append(found)
            else:
                array.root.offset = size
                small.append((array, found))
                size += -(-array.size // ALIGNMENT) * ALIGNMENT
        packed = np.zeros(size, np.float16)
        for array, found in small:
            packed[array.root.offset :][: array.size] = found.reshape(-1)
        return tuple(held), packed

    def _output(self, value: Array, space: int) -> None:
        """The value is computed in the port itself; one that is an input, a constant, a part, or leaves twice is copied."""
        if value.is_whole and value.root.space == SCRATCH:
            value.root.space = space
            return
        port = Array(Root(value.size, space), value.shape)
        strides = dense_strides(value.shape)
        self.schedule.add(Call([], "copy", (value,), port, {"sizes": value.shape, "x_strides": strides, "out_strides": strides}))

    def _require(self, value: Var | Literal, what: str) -> None:
        named = f"{self.name}: {what} {value.name}" if isinstance(value, Var) and what == "input" else f"{self.name}: {what}"
        require_surface(value.type, named)


def _weights(blobs: Mapping[str, bytes], path: str) -> BlobFile:
    if path not in blobs:
        given = ", ".join(blobs) or "none"
        raise DeviceError(f"the text names the weight file {path!r}, which was not handed over (given: {given}).")
    return BlobFile.from_bytes(blobs[path], path)
