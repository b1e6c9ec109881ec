"""Attention, and its gradient, found among a program's steps and made one step each, as csrc/attention.cpp runs it.

    matmul ─► [add mask, softmax] ─► P ─► matmul            probabilities, and products that read them
    matmul ─► [G P, sum of a row, G - sum, P times that] ─► S ─► matmul, matmul      their gradient
    both, where a backward computes P again

What is matched is what our passes write; anything else stays as it is. The one step has the bits of the many: of the (m, n) scores only a block of rows is
there at once, and columns that a constant mask makes 0 for a whole block are left out where that is proven to change nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchane import native
from torchane.runtime.twin.arrays import SCRATCH, Array, Root, Shape, TapeStep, broadcast_strides, dense_strides
from torchane.runtime.twin.chain import Micro
from torchane.runtime.twin.schedule import Call, Chain

#: Fewer products are each shared by the threads; of fewer rows, columns or terms nothing is gained.
LEAST_PRODUCTS, LEAST_ROWS, LEAST_COLUMNS, LEAST_TERMS = 4, 16, 64, 9
#: A mask this far below a row's largest is looked at as one that leaves out; the step proves it.
MASKED_BY = 1000.0

_SOFTMAX = (("softmax", "softmax"),)
_MASKED_SOFTMAX = (("binary", "add"), *_SOFTMAX)
_GRADIENT = (("binary", "mul"), ("row", "sum"), ("binary", "sub"), ("binary", "mul"))


@dataclass(frozen=True)
class Scores:
    """A chain over the (m, n) result of a product that nothing else reads."""

    product: Call
    chain: Chain
    out: Array
    mask: Array | None = None  # of a softmax
    p: Array | None = None  # what a gradient reads


@dataclass(frozen=True)
class Reader:
    product: Call
    of_gradient: bool
    is_left: bool


@dataclass(eq=False)
class Attention:
    """One step for `parts`; see csrc/steps.h. `values`: of the mask, where it is a constant."""

    probabilities: Scores | None
    gradient: Scores | None
    readers: Sequence[Reader]
    values: np.ndarray | None
    key: int = 0

    @property
    def parts(self) -> list[TapeStep]:
        scores = [one for one in (self.probabilities, self.gradient) if one is not None]
        parts = [part for one in scores for part in (one.product, one.chain)] + [reader.product for reader in self.readers]
        return sorted(parts, key=lambda part: part.key)

    @property
    def ops(self) -> list[str]:
        return [op for part in self.parts for op in part.ops]

    @property
    def p(self) -> Array:
        if self.probabilities is not None:
            return self.probabilities.out
        assert self.gradient is not None and self.gradient.p is not None, "one of the two is there"
        return self.gradient.p

    @property
    def keeps(self) -> bool:
        """P is in memory: it came from there, leaves, or is read elsewhere."""
        parts = self.parts
        return self.probabilities is None or self.p.root.space != SCRATCH or any(one not in parts and one is not self for one in self.p.root.readers)

    @property
    def _inside(self) -> set[Root]:
        inside = {one.product.out.root for one in (self.probabilities, self.gradient) if one is not None}
        if self.gradient is not None:
            inside.add(self.gradient.out.root)
        return inside if self.keeps else inside | {self.p.root}

    @property
    def reads(self) -> tuple[Array, ...]:
        own = self._inside | ({self.p.root} if self.probabilities is not None else set())
        return tuple(array for part in self.parts for array in part.reads if array.root not in own)

    @property
    def writes(self) -> tuple[Array, ...]:
        written = tuple(reader.product.out for reader in self.readers)
        return (*written, self.p) if self.probabilities is not None and self.keeps else written

    @property
    def aside(self) -> tuple[Array, ...]:
        return ()

    def emit(self, tape: Any) -> None:
        scores = self.probabilities or self.gradient
        assert scores is not None, "one of the two is there"
        m, n = scores.product.values["m"], scores.product.values["n"]
        mask = None if self.probabilities is None else self.probabilities.mask
        live, gap = _live(self.values, m, n)
        tape.attention(
            self.ops,
            m=m,
            n=n,
            batch=_batch(scores.product),
            probabilities=None if self.probabilities is None else packed_product(self.probabilities.product),
            mask=None if mask is None else (mask.place, *_mask_strides(mask, scores.product.out.shape)),
            live=live,
            gap=gap,
            p=self.p.place if self.keeps else None,
            gradient=None if self.gradient is None else packed_product(self.gradient.product),
            readers=[(packed_product(one.product, 0 if one.is_left else 1), one.of_gradient, one.is_left) for one in self.readers],
        )


def fuse_attention(steps: Sequence[TapeStep], constants: Mapping[Root, np.ndarray], arithmetic: str) -> list[TapeStep]:
    """The steps, in order, with every attention that is found as one step; their arrays' readers and writers are set anew."""
    if arithmetic == "engine" or (arithmetic == "exact" and native.needs_finite()):
        return list(steps)
    softmaxes = [found for step in steps if (found := _softmax(step, arithmetic)) is not None]
    gradients = [found for step in steps if (found := _gradient(step, arithmetic)) is not None]
    left = list(steps)
    for softmax in softmaxes:
        own = [one for one in gradients if one.p is not None and one.p.root is softmax.out.root]
        joined = own[0] if len(own) == 1 and softmax.out.root.space == SCRATCH and _same_batch(softmax.product, own[0].product) else None
        if _fuse(left, softmax, joined, constants, arithmetic) and joined is not None:
            gradients.remove(joined)
    for gradient in gradients:
        _fuse(left, None, gradient, constants, arithmetic)
    return left


def _fuse(
    left: list[TapeStep], softmax: Scores | None, gradient: Scores | None, constants: Mapping[Root, np.ndarray], arithmetic: str
) -> bool:
    """Puts one step in the place of many, if nothing reads a result of theirs before its time."""
    scores = softmax or gradient
    assert scores is not None, "one of the two is given"
    found: list[Reader | None] = []
    for surface, of_gradient in ((scores.out if softmax is not None else scores.p, False), (None if gradient is None else gradient.out, True)):
        if surface is not None:
            found += [_reader(step, surface, scores.product, of_gradient, arithmetic) for step in dict.fromkeys(surface.root.readers)]
    readers = [one for one in found if one is not None]
    if gradient is not None and any(one is not gradient.chain and one not in [r.product for r in readers] for one in gradient.out.root.readers):
        return False
    mask = None if softmax is None or softmax.mask is None else constants.get(softmax.mask.root)
    while True:
        made = Attention(softmax, gradient, readers, mask)
        parts = made.parts
        made.key = max(part.key for part in parts)
        early = [part for part in parts if any(one.key <= made.key and one not in parts for array in part.writes for one in array.root.readers)]
        if not early:
            break
        kept = [reader for reader in readers if reader.of_gradient or reader.product not in early]
        if len(kept) == len(readers):
            return False
        readers = kept
    if not readers or (gradient is None and softmax is None) or any(part not in left for part in parts):
        return False
    left[:] = sorted([one for one in left if one not in parts] + [made], key=lambda one: one.key)
    for root in {array.root for part in parts for array in (*part.reads, *part.writes)}:
        for links in (root.readers, root.writers):
            if any(one in parts for one in links):
                links[:] = [one for one in links if one not in parts] + [made]
    return True


def _is_worth_it(product: TapeStep, arithmetic: str) -> bool:
    if not isinstance(product, Call) or product.method != "matmul" or (arithmetic == "fast" and product.values["exact"]):
        return False
    m, n, k = (product.values[name] for name in "mnk")
    return m >= LEAST_ROWS and n >= LEAST_COLUMNS and k >= LEAST_TERMS and math.prod(_batch(product)) >= LEAST_PRODUCTS


def _forms(chain: Chain) -> tuple[tuple[str, str], ...]:
    return tuple((micro.family, micro.code) for micro in chain.micros)


def _scores(chain: Chain, first: Micro, arithmetic: str) -> Call | None:
    """The product whose whole result is the chain's first operand, and nobody else's."""
    array = first.inputs[0]
    writers = array.root.writers
    if len(writers) != 1 or not array.is_whole or array.root.space != SCRATCH or any(one is not chain for one in array.root.readers):
        return None
    product = writers[0]
    if not isinstance(product, Call) or not _is_worth_it(product, arithmetic):
        return None
    return product if array.shape == product.out.shape and first.domain == array.shape else None


def _softmax(step: TapeStep, arithmetic: str) -> Scores | None:
    if not isinstance(step, Chain) or _forms(step) not in (_SOFTMAX, _MASKED_SOFTMAX):
        return None
    first, last = step.micros[0], step.micros[-1]
    product = _scores(step, first, arithmetic)
    if product is None or last.row != product.values["n"] or not last.out.is_whole or last.out.shape != product.out.shape:
        return None
    if first is last:
        return Scores(product, step, last.out)
    mask = first.inputs[1]
    is_plain = last.inputs[0].root is first.out.root and first.out.root.readers == [step] and first.out.root.space == SCRATCH
    along = broadcast_strides(mask.shape, product.out.shape)[-1]
    return Scores(product, step, last.out, mask) if is_plain and along == 1 and mask.root is not first.inputs[0].root else None


def _gradient(step: TapeStep, arithmetic: str) -> Scores | None:
    if not isinstance(step, Chain) or _forms(step) != _GRADIENT:
        return None
    times, total, less, result = step.micros
    product = _scores(step, times, arithmetic)
    if product is None or total.row != product.values["n"]:
        return None
    g, p = times.inputs
    is_one = (
        total.inputs[0].root is times.out.root
        and less.inputs[0].root is g.root
        and less.inputs[1].root is total.out.root
        and (result.inputs[0].root, result.inputs[0].offset) == (p.root, p.offset)
        and result.inputs[1].root is less.out.root
        and all(one.shape == product.out.shape for one in (p, less.inputs[0], less.out, result.inputs[0], result.out))
        and all(one.out.root.readers == [step] and one.out.root.space == SCRATCH for one in (times, total, less))
        and result.out.root.space == SCRATCH
        and result.out.is_whole
        and p.root is not g.root
    )
    return Scores(product, step, result.out, p=p) if is_one else None


def _reader(step: TapeStep, surface: Array, scores: Call, of_gradient: bool, arithmetic: str) -> Reader | None:
    """A product of the same batch that reads the whole surface as one operand."""
    if not isinstance(step, Call) or step.method != "matmul" or (arithmetic == "fast" and step.values["exact"]):
        return None
    sides = [index for index, array in enumerate(step.x) if array.root is surface.root]
    if len(sides) != 1 or not _same_batch(step, scores):
        return None
    is_left = sides == [0]
    own = step.x[sides[0]]
    m, n = scores.values["m"], scores.values["n"]
    sizes = (step.values["m"], step.values["k"]) if is_left else (step.values["k"], step.values["n"])
    if step.values["transpose_x" if is_left else "transpose_y"]:
        sizes = sizes[::-1]
    dense = dense_strides((*_batch(scores), m, n))[:-2]
    fits = sizes == (m, n) and (own.offset, own.size) == (surface.offset, surface.size)
    fits = fits and _strides(step, "x_strides" if is_left else "y_strides") == dense
    return Reader(step, of_gradient, is_left) if fits and min(step.values[name] for name in "mnk") >= LEAST_TERMS else None


def _batch(product: Call) -> Shape:
    return tuple(size for size in product.values["batch"] if size != 1)


def _same_batch(a: Call, b: Call) -> bool:
    return _batch(a) == _batch(b)


def _strides(product: Call, name: str) -> Shape:
    return tuple(stride for size, stride in zip(product.values["batch"], product.values[name], strict=True) if size != 1)


def _mask_strides(mask: Array, shape: Shape) -> tuple[Shape, int]:
    *batch, row, _ = broadcast_strides(mask.shape, shape)
    return tuple(stride for size, stride in zip(shape[:-2], batch, strict=True) if size != 1), row


def packed_product(product: Call, unread: int | None = None, out: Array | None = None) -> tuple[Any, ...]:
    """As Tape.attention takes it; `unread`: the operand that is P or S, of a product whose result is read. out: the result, where it is all that is read."""
    values = product.values
    places = [(0, 0) if index == unread else array.place for index, array in enumerate(product.x)]
    written = out or (None if unread is None else product.out)
    sizes = tuple(values[name] for name in "mnk")
    return (*places, (0, 0) if written is None else written.place, sizes, values["transpose_x"], values["transpose_y"], _strides(product, "x_strides"), _strides(product, "y_strides"))


def _live(mask: np.ndarray | None, m: int, n: int) -> tuple[list[int], list[float]]:
    """For each block of rows: how many columns count, and how far the mask of the others lies below the largest of any row."""
    rows = native.ATTENTION_ROWS
    blocks = range(0, m, rows)
    if mask is None or mask.shape[-1] != n or math.prod(mask.shape[:-2]) != 1:
        return [n for _ in blocks], [math.inf for _ in blocks]
    numbers = np.broadcast_to(mask.reshape((1, 1, *mask.shape)[-2:]), (m, n))
    live, gaps = [], []
    for begin in blocks:
        block = numbers[begin : begin + rows].astype(np.float32)
        top, columns = float(block.max(axis=1).min()), block.max(axis=0)
        counting = np.flatnonzero(~(columns <= top - MASKED_BY))
        end = int(counting[-1]) + 1 if len(counting) else n
        live.append(end)
        gaps.append(top - float(columns[end:].max()) if end < n and math.isfinite(top) else (math.inf if end == n else -math.inf))
    return live, gaps
