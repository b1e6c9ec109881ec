"""Functions of one fp16 number, as the table of what they give for each of the 65,536 there are.

    t = x * x; u = t * x; v = u * 0.0447; w = x + v; .. tanh ..; y = h * x        ──►        y = table[x]
GELU is eight ops behind a bias, its gradient fifteen, each rounded to fp16: 1 to 2 ns a number. To look one up takes 0.4, for the part of the table that a
layer's numbers reach stays in the second-level cache. The table holds what the ops themselves give, so the bits are theirs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from torchane import native
from torchane.runtime.twin.arrays import CONSTANTS, FIRST_PORT, Array, Root, Shape
from torchane.runtime.twin.chain import Geometry, Micro, chain_geometry, emit_chain
from torchane.runtime.twin.schedule import Chain

PATTERNS = 1 << 16
#: What ops take, ns a number (AVX-512; benchmarks/LOG.md), and a look-up. Less than LEAST is not worth the cache that it takes.
_COSTS = {"exp": 0.43, "sigmoid": 0.53, "silu": 0.53, "tanh": 0.5, "erf": 0.5, "log": 0.5, "pow": 1.0}
_OTHERS, _LOOK_UP, _LEAST = 0.11, 0.38, 0.3
#: Of fewer numbers the table is not used often enough to come into the cache.
_LEAST_NUMBERS = PATTERNS


@dataclass
class _Function:
    """What a chain computes of one operand, as micros by index. x: which operand, as a micro sees it."""

    x: Array
    strides: Shape
    inside: list[int] = field(default_factory=list)


def tabulate(chain: Chain, constants: Mapping[Root, np.ndarray], place: Callable[[np.ndarray], Array]) -> None:
    """Rewrites a chain in place, where that is worth it. place: an array of the program's constants for a table."""
    if math.prod((*chain.geometry.sizes, chain.geometry.row)) < _LEAST_NUMBERS or any(micro.family == "softmax" for micro in chain.micros):
        return
    for function in _functions(chain, constants):
        exits = [index for index in function.inside if chain.leaves_or_is_read(chain.micros[index].out.root, function.inside)]
        saved = sum(_COSTS.get(chain.micros[index].code, _OTHERS) for index in function.inside) - _LOOK_UP * len(exits)
        if exits and saved >= _LEAST:
            tables = _tables([chain.micros[index] for index in function.inside], function.x, [chain.micros[index].out.root for index in exits], constants)
            _replace(chain, function, dict(zip(exits, map(place, tables), strict=True)))
            tabulate(chain, constants, place)  # indices are others now
            return


def _functions(chain: Chain, constants: Mapping[Root, np.ndarray]) -> list[_Function]:
    """All of them; a result of two of them, or of two operands, is an operand of others."""
    of: dict[Root, _Function] = {}
    operands: dict[tuple[Root, int, Shape], _Function] = {}
    for index, (micro, strides, is_once) in enumerate(zip(chain.micros, chain.geometry.strides, chain.geometry.once, strict=True)):
        if is_once or micro.family not in ("unary", "binary"):
            continue
        found: list[_Function | None] = []
        for array, along in zip(micro.inputs, strides, strict=True):
            if _number(array, constants) is not None:
                continue
            if along[-1] != 1:
                found.append(None)  # one number for a row
            elif array.root in of:
                found.append(of[array.root])
            else:
                found.append(operands.setdefault((array.root, array.offset, along), _Function(array, along)))
        first = found[0] if found else None
        if first is not None and all(one is first for one in found):
            first.inside.append(index)
            of[micro.out.root] = first
    return list(operands.values())


def _number(array: Array, constants: Mapping[Root, np.ndarray]) -> np.ndarray | None:
    """The constant that an operand is, where it is a single number."""
    value = constants.get(array.root)
    return value if value is not None and value.size == 1 else None


def _tables(micros: Sequence[Micro], x: Array, exits: Sequence[Root], constants: Mapping[Root, np.ndarray]) -> list[np.ndarray]:
    """What the micros give for every fp16 number: computed as the chain would, by a tape of their own."""
    port = Array(Root(PATTERNS, FIRST_PORT), (PATTERNS,))
    made: dict[Root, Array] = {}
    numbers: list[np.ndarray] = []
    alike: list[Micro] = []

    def seen(array: Array) -> Array:
        if array.root in made:
            return made[array.root]
        value = _number(array, constants)
        if value is None:
            return port
        numbers.append(value.reshape(()))
        return made.setdefault(array.root, Array(Root(1, CONSTANTS, len(numbers) - 1), (1,)))

    for micro in micros:
        inputs = tuple(map(seen, micro.inputs))
        space = FIRST_PORT + 1 + exits.index(micro.out.root) if micro.out.root in exits else 0
        out = made[micro.out.root] = Array(Root(PATTERNS, space), (PATTERNS,))
        alike.append(replace(micro, inputs=inputs, out=out))
    geometry = chain_geometry(alike)
    assert geometry is not None, "all of them walk over the same numbers"
    packed = np.array(numbers, np.float16) if numbers else np.zeros(0, np.float16)
    tape = native.Tape(name="table", inputs=[(PATTERNS,)], outputs=[(PATTERNS,)] * len(exits), constants=packed, scratch=0, arithmetic="exact", shared=())
    emit_chain(tape, [], alike, geometry, {made[root].root for root in exits})
    tables = [np.empty(PATTERNS, np.float16) for _ in exits]
    native.Executor().run(tape, [np.arange(PATTERNS, dtype=np.uint16).view(np.float16)], tables)
    return tables


def _replace(chain: Chain, function: _Function, tables: Mapping[int, Array]) -> None:
    """Looks up what the function gives where its last op was."""
    old, still = chain.geometry, (0,) * len(function.strides)
    micros: list[Micro] = []
    strides, results, once = [], [], []
    for index, micro in enumerate(chain.micros):
        if index in tables:
            micros.append(replace(micro, family="table", code="table", inputs=(function.x, tables[index])))
            strides.append((function.strides, still))
        elif index in function.inside:
            chain.tabulated.append(micro.op)
            continue
        else:
            micros.append(micro)
            strides.append(old.strides[index])
        results.append(old.result_strides[index])
        once.append(old.once[index])
    for table in tables.values():
        table.root.readers.append(chain)
    chain.micros = micros
    chain.geometry = Geometry(old.sizes, old.row, old.whole_rows, tuple(once), tuple(strides), tuple(results))
