"""Whether a graph's programs serve ranges of sizes, and which one a call has.

    first calls   a size's own bucket, compiled where it is new
    later         a bucket that is new is lent a larger one that is there, until that has lost as much as LOST of its steps; then it is compiled
    beyond all    a power of two: what grows step by step, as a cache does, is compiled at each doubling
So a rare length late in a run, an epoch's last batch, waits for no compilation. Which program serves a call depends on the calls before
it alone, never on time: a run that is repeated has the same bits.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import sympy
from torch import fx

from torchane.capture.sizes.buckets import Buckets
from torchane.capture.sizes.padded import Bucket
from torchane.capture.sizes.reasons import NotPaddable
from torchane.capture.sizes.told import Sizes, macs_at
from torchane.capture.sizes.trace import Traced, sizes_in, trace

#: Calls in which every bucket that is new is compiled: lengths that are common come in these.
EARLY = 16
#: How many steps' work a bucket may lose to others that it is lent: 64 where they are twice as large, 640 where they are a tenth larger. That takes
#: about as long as compiling does.
LOST = 64


class Served:
    """Of one graph of Dynamo's with symbols. reason: why its sizes are exact, by name; empty where they are not."""

    def __init__(self, gm: fx.GraphModule, buckets: Buckets) -> None:
        self._gm = gm
        self._buckets = buckets
        self._traced: Traced | None = None
        self._first: frozenset[str] = frozenset()
        self._made: dict[tuple[int, ...], Bucket] = {}
        self._works: dict[tuple[int, ...], int] = {}
        self._calls = 0
        self._lost: defaultdict[tuple[int, ...], float] = defaultdict(float)
        self.reason = "" if buckets.is_on else 'the option buckets is "off"'

    def bucket(self, args: Sequence[Any]) -> tuple[Bucket, dict[sympy.Symbol, int]] | None:
        """The bucket of a call and its true sizes; None where its program must be of its exact sizes."""
        if self.reason:
            return None
        sizes = sizes_in(self._gm, args)
        try:
            if self._traced is None:
                self._first = _first_axes(self._gm)
                self._traced = _trace(self._gm, sizes)
            true = self._traced.true(sizes)
            if not true or min(true.values()) < 2:
                return None
            names = {symbol: name for name, symbol in self._traced.symbols.items()}
            wanted = self._serving(tuple(self._buckets.of(size, names[symbol] in self._first) for symbol, size in true.items()))
            if wanted not in self._made:
                self._made[wanted] = Bucket(self._traced, dict(zip(true, wanted, strict=True)))
            return self._made[wanted], true
        except NotPaddable as error:
            self.reason = str(error)
            return None

    def sizes(self, bucket: Bucket, true: Mapping[sympy.Symbol, int], named: Mapping[str, str]) -> Sizes:
        """What is said of a bucket and the call that it is made for. named: dimensions, by Dynamo's symbols."""
        assert self._traced is not None
        names = {symbol: name for name, symbol in self._traced.symbols.items()}
        served = tuple((named.get(names[symbol], f"size {symbol}"), size, bucket.sizes[symbol]) for symbol, size in true.items())
        needed, made = (macs_at(self._traced.module, sizes) for sizes in (true, bucket.sizes))
        return Sizes(served, 1 - needed / made if made else 0.0)

    def _serving(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """These sizes, or those of a program that is there, or is to serve what grows."""
        self._calls += 1
        if wanted in self._made or self._calls <= EARLY or self._buckets.sizes or self._lost[wanted] >= LOST:
            return wanted
        there = [sizes for sizes in self._made if self._buckets.lends(sizes, wanted, self._work(sizes) / self._work(wanted))]
        if not there:
            most = [max(sizes) for sizes in zip(*self._made, strict=True)]
            return tuple(Buckets.doubled(size) if size > known else size for size, known in zip(wanted, most, strict=True))
        lent = min(there, key=self._work)
        self._lost[wanted] += self._work(lent) / self._work(wanted) - 1
        return lent

    def _work(self, sizes: tuple[int, ...]) -> int:
        """Multiply-adds of a forward; numbers, where there are none. An encoder's and a decoder's lengths add up, batch and length multiply."""
        if sizes not in self._works:
            assert self._traced is not None
            symbols = dict.fromkeys(symbol for symbol in self._traced.symbols.values() if isinstance(symbol, sympy.Symbol))
            self._works[sizes] = macs_at(self._traced.module, dict(zip(symbols, sizes, strict=True))) or prod(sizes)
        return self._works[sizes]


def _trace(gm: fx.GraphModule, sizes: dict[str, int]) -> Traced:
    try:
        return trace(gm, sizes)
    except NotPaddable:
        raise
    except Exception as error:  # whatever torch says of a graph with symbols: it runs without them
        lines = str(error).splitlines() or [type(error).__name__]
        raise NotPaddable(f"torch cannot trace it with sizes that vary ({lines[0]})") from error


def _first_axes(gm: fx.GraphModule) -> frozenset[str]:
    """Symbols that are the first axis of some input: batches and rows."""
    found = set()
    for node in gm.graph.find_nodes(op="placeholder"):
        example = node.meta.get("example_value")
        if getattr(example, "shape", None) is not None and len(example.shape) and hasattr(example.shape[0], "node"):
            found |= {symbol.name for symbol in example.shape[0].node.expr.free_symbols}
    return frozenset(found)
