"""A slice of a vocabulary's scores, found among a program's steps and made one step, as csrc/vocabulary.cpp runs it.

    matmul ─► max ──────────────┬─► add ─► largest of a row; sub, exp, sum of a row          forward
    matmul by a code ─► add, max ┴─► ... ─► the target's score
    the same two products ─► ... exp, less `rest` at the target, times the row's gradient     backward

Forward, the scores may leave the program, and a backward may read such scores in place of the first product.
What is matched is what capture/rules/vocabulary.py writes; anything else stays as it is. The one step has the bits of the many, which it keeps for
numbers that it is not proven for. The product with a code, a matrix of zeros and ones in all but name, is left out: the code itself says where the 1 is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchane.abi.numbers import FP16_MAX
from torchane.runtime.twin.arrays import SCRATCH, Array, Root, TapeStep
from torchane.runtime.twin.attention import packed_product
from torchane.runtime.twin.chain import Micro
from torchane.runtime.twin.schedule import Call, Chain

#: The least number of fp16, which scores are raised to.
LOWEST = -FP16_MAX


@dataclass(eq=False)
class Vocabulary:
    """One step for `parts`, in their order; see csrc/steps.h. product: of the scores, which are (m, n) = sizes; None where they are `kept`, and read. places: top, total
    and own, or taken, rest, grad and out. kept: where scores lie in memory that other programs see."""

    parts: Sequence[Call | Chain]
    product: Call | None
    sizes: tuple[int, int]
    is_forward: bool
    code: Array
    code_size: int
    left_out: float
    places: tuple[Array, ...]
    kept: Array | None = None
    key: int = 0

    @property
    def ops(self) -> list[str]:
        return [op for part in self.parts for op in part.ops]

    @property
    def _results(self) -> tuple[Array, ...]:
        kept = () if self.kept is None else (self.kept,)
        return (*self.places, *kept) if self.is_forward else self.places[-1:]

    @property
    def reads(self) -> tuple[Array, ...]:
        own = {array.root for part in self.parts for array in part.writes}
        return tuple(array for part in self.parts for array in part.reads if array.root not in own)

    @property
    def writes(self) -> tuple[Array, ...]:
        return self._results

    @property
    def aside(self) -> tuple[Array, ...]:
        results = {array.root for array in self._results}
        return tuple(array for part in self.parts for array in part.writes if array.root not in results)

    def emit(self, tape: Any) -> None:
        for part in self.parts:
            part.emit(tape)
        tape.vocabulary(
            self.ops,
            parts=len(self.parts),
            scores=None if self.product is None else packed_product(self.product, out=self.product.out),
            sizes=self.sizes,
            exact=self.product is not None and self.product.values["exact"],
            is_forward=self.is_forward,
            code=self.code.place,
            code_size=self.code_size,
            left_out=self.left_out,
            places=[array.place for array in self.places],
            kept=None if self.kept is None else self.kept.place,
        )


def fuse_vocabulary(steps: Sequence[TapeStep], constants: Mapping[Root, np.ndarray], arithmetic: str) -> list[TapeStep]:
    """The steps, in order, with a slice's scores as one step, if that is what they are; the readers and writers of its arrays are set anew."""
    if arithmetic == "engine":
        return list(steps)
    left = list(steps)
    for step in steps:
        for micro in step.micros if isinstance(step, Chain) else ():
            found = _Slice(constants).match(micro)
            if found is not None and _is_closed(found, left):
                _replace(left, found)
                break
    return left


def _is_closed(made: Vocabulary, left: Sequence[TapeStep]) -> bool:
    """Nothing else reads or writes what lies between its parts, and what it reads is there before the first of them."""
    if any(part not in left for part in made.parts):
        return False
    inside = all(one in made.parts for array in made.aside for one in (*array.root.readers, *array.root.writers))
    first, last = made.parts[0].key, made.parts[-1].key
    early = all(one.key < first for array in made.reads for one in array.root.writers)
    late = all(one in made.parts or one.key > last for array in made.writes for one in array.root.readers)
    return inside and early and late and all(array.root.space == SCRATCH for array in made.aside)


def _replace(left: list[TapeStep], made: Vocabulary) -> None:
    made.key = made.parts[-1].key
    left[:] = sorted([one for one in left if one not in made.parts] + [made], key=lambda one: one.key)
    for root in {array.root for part in made.parts for array in (*part.reads, *part.writes)}:
        for links in (root.readers, root.writers):
            if any(one in made.parts for one in links):
                links[:] = [one for one in links if one not in made.parts] + [made]


class _Differs(Exception):
    """The steps are not the ones that are looked for."""


class _Slice:
    """Follows the ops from their results back to the two products."""

    def __init__(self, constants: Mapping[Root, np.ndarray]) -> None:
        self.constants = constants
        self.met: dict[Root, None] = {}
        self.steps: dict[TapeStep, None] = {}

    def match(self, last: Micro) -> Vocabulary | None:
        """last: the op of the target's score, or of the gradient."""
        try:
            if (last.family, last.code) == ("row", "max"):
                made = self._forward(last.out)
            elif (last.family, last.code) == ("binary", "mul"):
                made = self._backward(last.out)
            else:
                return None
        except _Differs:
            return None
        whole = {micro.out.root for step in self.steps if isinstance(step, Chain) for micro in step.micros}
        return made if whole == set(self.met) else None

    def _forward(self, own: Array) -> Vocabulary:
        """own = max(scores + (L - gap)), total = sum(exp(others - top)), top = max(others)"""
        scores, elsewhere = self._op(self._row(own, "max"), "add")
        number, gap = self._op(elsewhere, "sub")
        others = self._read_by(gap, "add")
        top, less = self._read_by(others, "max"), self._read_by(others, "sub")
        total = self._read_by(self._read_by(less, "exp"), "sum")
        exponents = self._op(self._row(total, "sum"), "exp")[0]
        found, taken = self._op(exponents, "sub")
        self._require(found.root is others.root and taken.root is top.root and self._row(top, "max").root is others.root)
        left_out = self._number(number)
        codes, code, size = self._targets(scores, gap, others, left_out)
        product = self._scores(scores, codes)
        m, n = product.values["m"], product.values["n"]
        self._codes(codes, size, n, m)
        self._require(all(one.size == m and one.is_whole for one in (top, total, own)) and product.out.shape[-2:] == (m, n))
        kept = None if scores.root.space == SCRATCH else scores
        return Vocabulary(self._ordered(), product, (m, n), True, code, size, left_out, (top, total, own), kept)

    def _backward(self, out: Array) -> Vocabulary:
        """out = (exp(others - taken) - is_target * rest) * grad"""
        less, grad = self._op(out, "mul")
        powers, at_target = self._op(less, "sub")
        exponents = self._op(powers, "exp")[0]
        others, taken = self._op(exponents, "sub")
        is_target, rest = self._op(at_target, "mul")
        scores, gap = self._op(others, "add")
        found, number = self._op(gap, "mul")
        self._require(found.root is is_target.root)
        left_out = self._number(number)
        codes, code, size = self._targets(scores, gap, others, left_out)
        m, n = codes.values["m"], codes.values["n"]
        rows = (taken, rest, grad)
        self._require(out.is_whole and out.size == m * n and out.shape[-1] == n)
        if not scores.root.writers:  # kept ones, a row for each token
            self._codes(codes, size, n, m)
            self._require(scores.size == m * n and scores.is_whole and all(one.size == m and one.shape[-1] == 1 for one in rows))
            return Vocabulary(self._ordered(), None, (m, n), False, code, size, left_out, (*rows, out), scores)
        product = self._scores(scores, codes)
        self._codes(codes, size, m, n)
        self._require(all(one.size == n == one.shape[-1] for one in rows))
        return Vocabulary(self._ordered(), product, (m, n), False, code, size, left_out, (*rows, out))

    def _targets(self, scores: Array, gap: Array, others: Array, left_out: float) -> tuple[Call, Array, int]:
        """The product with the code, the code and its size: others = scores + max(code codes - size + 1, 0) * left_out."""
        one, other = self._op(others, "add")
        self._require(one.root is scores.root and other.root is gap.root and np.isfinite(left_out) and left_out < 0)
        is_target, number = self._op(gap, "mul")
        self._require(self._number(number) == left_out)
        shifted, zero = self._op(is_target, "max")
        alike, shift = self._op(shifted, "add")
        codes = self._product(alike)
        size = codes.values["k"]
        self._require(self._number(zero) == 0 and not np.signbit(self._number(zero)) and self._number(shift) == 1 - size)
        own = [array for array in codes.x if array.root not in self.constants]
        self._require(len(own) == 1 and own[0].size == size * (codes.values["m"] if own[0] is codes.x[0] else codes.values["n"]))
        return codes, own[0], size

    def _scores(self, scores: Array, codes: Call) -> Call:
        """The product of the scores: scores = max(x y, lowest)."""
        raw, least = self._op(scores, "max")
        product = self._product(raw)
        self._require(self._number(least) == LOWEST and all(product.values[name] == codes.values[name] for name in "mn"))
        return product

    def _codes(self, codes: Call, size: int, entries: int, tokens: int) -> None:
        """Requires that the constant operand holds the bits of each entry's number as signs, and that the other one is (size, tokens)."""
        constant = next(array for array in codes.x if array.root in self.constants)
        own = next(array for array in codes.x if array is not constant)
        signs = ((np.arange(entries)[:, None] >> np.arange(size)) & 1) * 2 - 1
        wanted = {(entries, size): signs, (size, entries): signs.T}.get(constant.shape[-2:])
        lies_turned = codes.values["transpose_x"] if own is codes.x[0] else not codes.values["transpose_y"]
        self._require(own.size == size * tokens and lies_turned and constant.is_whole and constant.size == signs.size)
        self._require(size != entries and entries <= 1 << size and wanted is not None)
        self._require(np.array_equal(self.constants[constant.root].reshape(-1), wanted.reshape(-1)))

    def _op(self, array: Array, code: str) -> tuple[Array, ...]:
        """The operands of the op that made this, which is `code`."""
        micro = self._made(array)
        self._require(micro.family in ("unary", "binary") and micro.code == code)
        return micro.inputs

    def _row(self, array: Array, code: str) -> Array:
        micro = self._made(array)
        self._require(micro.family == "row" and micro.code == code and micro.row == micro.inputs[0].shape[-1])
        return micro.inputs[0]

    def _read_by(self, array: Array, code: str) -> Array:
        """The result of the one op, which is `code`, that reads this."""
        chains = [step for step in array.root.readers if isinstance(step, Chain)]
        found = [micro for chain in chains for micro in chain.micros if micro.code == code and any(one.root is array.root for one in micro.inputs)]
        self._require(len(found) == 1)
        return found[0].out

    def _made(self, array: Array) -> Micro:
        """The op that computes the whole of an array."""
        step = self._writer(array)
        self._require(isinstance(step, Chain))
        found = [micro for micro in step.micros if micro.out.root is array.root]  # type: ignore[union-attr]
        self._require(len(found) == 1)
        self.met[array.root] = None
        return found[0]

    def _product(self, array: Array) -> Call:
        step = self._writer(array)
        self._require(isinstance(step, Call) and step.method == "matmul" and set(step.values["batch"]) <= {1})
        return step  # type: ignore[return-value]

    def _writer(self, array: Array) -> TapeStep:
        self._require(array.is_whole and len(array.root.writers) == 1)
        step = array.root.writers[0]
        self.steps[step] = None
        return step

    def _number(self, array: Array) -> float:
        self._require(array.root in self.constants and array.size == 1)
        return float(self.constants[array.root].item())

    def _ordered(self) -> list[Any]:
        return sorted(self.steps, key=lambda step: step.key)

    @staticmethod
    def _require(holds: object) -> None:
        if not holds:
            raise _Differs
