"""Which order to store every value in, so that the fewest bytes are moved.

    assign(question, choices)         ── in program order, each op takes the cheapest of its options ──► Assignment
    attempt(question, choices, base)  ── what choices change of one ──► Trial, and its cost
    search(question)                  ── what an assignment still moves: have it produced that way ──► the cheapest

An assignment says the order of every value and how every op reads its operands. What is read in another order
than it is stored in is a move: a transpose that costs the bytes of the value. Choices are orders asked for, of
inputs that are free and of results; where no option of an op writes that order, the op does what is cheapest.
Pure functions: nothing is emitted here.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torchane.mil.ir import Function, Var
from torchane.passes.layout.order import Order, channels_first
from torchane.passes.layout.rules import MOVES, rule_of
from torchane.passes.layout.ways import Tensor, Way, likeness, operands

Choices = Mapping[Var, Order]
Move = tuple[Var, Order]

#: How often everything is gone through again after something became cheaper; two have always been enough.
_MOST_SWEEPS = 4


class Step(NamedTuple):
    """What an op does: its way, and what it reads in another order than it is stored in."""

    way: Way
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Assignment:
    """The order of every value, what every op does, and how many readers each move has."""

    orders: Mapping[Var, Order]
    steps: tuple[Step, ...]
    readers: Mapping[Move, int]
    choices: Choices

    @property
    def ways(self) -> tuple[Way, ...]:
        return tuple(step.way for step in self.steps)

    @cached_property
    def cost(self) -> tuple[int, int]:
        """Bytes moved; then how much is awkward, operands that matmuls take transposed above all."""
        moved = sum(var.type.size_bytes for var, _ in self.readers) + sum(step.way.copied for step in self.steps)
        return moved, sum(step.way.awkward for step in self.steps)


@dataclass
class Question:
    """A function and what is settled: the orders of bound inputs, the orders in which outputs must leave, and
    which values are weights. Remembers what each op can do."""

    function: Function
    bound: Choices = field(default_factory=dict)
    wanted: Choices = field(default_factory=dict)
    weights: frozenset[Var] = frozenset()

    def __post_init__(self) -> None:
        ops = self.function.ops
        self.tensors: list[tuple[Tensor, ...]] = [operands(op) for op in ops]
        self.readers: dict[Var, list[int]] = {}
        for index, tensors in enumerate(self.tensors):
            for var in {tensor for tensor in tensors if isinstance(tensor, Var)}:
                self.readers.setdefault(var, []).append(index)
        self.free = {var: channels_first(var.shape) for var in self.function.inputs}
        self.index = {op.output: index for index, op in enumerate(ops)}
        alike: dict[Hashable, int] = {}
        self._alike = [alike.setdefault(likeness(op, self.weights), index) for index, op in enumerate(ops)]
        self._ways: dict[tuple[int, tuple[Order | None, ...]], tuple[Way, ...]] = {}
        self._options: dict[tuple[int, tuple[Order | None, ...]], tuple[Step, ...]] = {}

    def given(self, index: int, orders: Choices) -> tuple[Order | None, ...]:
        """The orders of an op's operands; None for a constant."""
        return tuple([orders[tensor] if isinstance(tensor, Var) else None for tensor in self.tensors[index]])

    def options(self, index: int, given: tuple[Order | None, ...]) -> tuple[Step, ...]:
        """The ways to run an op, cheapest first; one per order of the result."""
        key = (index, given)
        found = self._options.get(key)
        if found is None:
            ways = self._ways_of(self._alike[index], given)
            found = self._options[key] = tuple(Step(way, self._moves(index, given, way)) for way in ways)
        return found

    def _ways_of(self, index: int, given: tuple[Order | None, ...]) -> tuple[Way, ...]:
        """`options` without the names: worked out once for all ops that are alike."""
        key = (index, given)
        if key not in self._ways:
            op = self.function.ops[index]

            def price(way: Way) -> tuple[int, int]:
                return sum(var.type.size_bytes for var, _ in self._moves(index, given, way)) + way.copied, way.awkward

            best: dict[Order, Way] = {}
            for way in sorted(rule_of(op).options(op, given, self.weights), key=price):
                best.setdefault(way.writes, way)
            self._ways[key] = tuple(best.values())
        return self._ways[key]

    def _moves(self, index: int, given: tuple[Order | None, ...], way: Way) -> tuple[Move, ...]:
        """What an op reads in another order than it is stored in; what it reads so twice is moved once."""
        found = zip(self.tensors[index], given, way.reads)
        return tuple(dict.fromkeys((tensor, read) for tensor, order, read in found if order is not None and order != read))  # type: ignore[misc]


class _Over(dict[Any, Any]):
    """What has changed of a mapping or a tuple that stays as it is."""

    def __init__(self, base: Any):
        super().__init__()
        self.base = base

    def __missing__(self, key: Any) -> Any:
        return self.base[key]


@dataclass
class Trial:
    """What choices change of an assignment. Nothing of it is copied until the trial is taken: most are not."""

    base: Assignment
    asked: Choices
    orders: _Over
    steps: _Over
    readers: Counter[Move]

    @property
    def cost(self) -> tuple[int, int]:
        """Of the whole assignment, as in Assignment."""
        moved, awkward = self.base.cost
        for move, change in self.readers.items():
            before = self.base.readers.get(move, 0)
            moved += ((before + change > 0) - (before > 0)) * move[0].type.size_bytes
        for index, step in self.steps.items():
            before = self.base.steps[index].way
            moved += step.way.copied - before.copied
            awkward += step.way.awkward - before.awkward
        return moved, awkward

    def taken(self) -> Assignment:
        readers = Counter(self.base.readers)
        for move, change in self.readers.items():
            readers[move] += change
        steps = tuple(self.steps.get(index, step) for index, step in enumerate(self.base.steps))
        return Assignment({**self.base.orders, **self.orders}, steps, +readers, self.asked)


def assign(question: Question, choices: Choices) -> Assignment:
    """The orders that follow from choices, in one walk through the program."""
    orders: dict[Var, Order] = {}
    steps: list[Step] = []
    readers: Counter[Move] = Counter()

    def store(var: Var, order: Order) -> None:
        orders[var] = order
        wanted = question.wanted.get(var)
        if wanted is not None:
            readers[var, wanted] += order != wanted

    for var in question.function.inputs:
        store(var, question.bound.get(var) or choices.get(var) or question.free[var])
    for index, op in enumerate(question.function.ops):
        step = _chosen(question.options(index, question.given(index, orders)), choices.get(op.output))
        readers.update(step.moves)
        steps.append(step)
        store(op.output, step.way.writes)
    return Assignment(orders, tuple(steps), +readers, choices)


def _chosen(options: tuple[Step, ...], wanted: Order | None) -> Step:
    """The option that writes the order asked for, where one does; else the cheapest."""
    if wanted is not None:
        for option in options:
            if option.way.writes == wanted:
                return option
    return options[0]


def attempt(question: Question, choices: Choices, base: Assignment) -> Trial:
    """The base with `choices` added to its own; only what they reach is walked through again."""
    function = question.function
    trial = Trial(base, {**base.choices, **choices}, _Over(base.orders), _Over(base.steps), Counter())
    orders, steps, readers, asked = trial.orders, trial.steps, trial.readers, trial.asked
    waiting = [question.index[var] for var in choices if var in question.index]
    heapq.heapify(waiting)

    def store(var: Var, order: Order) -> None:
        before = orders[var]
        if before == order:
            return
        orders[var] = order
        for reader in question.readers.get(var, ()):
            heapq.heappush(waiting, reader)
        wanted = question.wanted.get(var)
        if wanted is not None:
            readers[var, wanted] += (order != wanted) - (before != wanted)

    for var in choices:
        if var in question.free:
            store(var, question.bound.get(var) or asked[var])
    while waiting:
        index = heapq.heappop(waiting)
        while waiting and waiting[0] == index:
            heapq.heappop(waiting)
        output = function.ops[index].output
        before, after = steps[index], _chosen(question.options(index, question.given(index, orders)), asked.get(output))
        if after is before:
            continue
        for move in before.moves:
            readers[move] -= 1
        for move in after.moves:
            readers[move] += 1
        steps[index] = after
        store(output, after.way.writes)
    return trial


def search(question: Question) -> Assignment:
    """The cheapest assignment found by mending one move, then changing one choice, at a time.

    A move is mended by having its value produced in the order in which it is read: the wish is handed up
    through ops that keep the order of what they read, to the inputs and matmuls that can grant it.
    """
    best, failed = assign(question, {}), {}
    for _ in range(_MOST_SWEEPS):
        before = best.cost
        best = _improved(question, best, _mended, failed)
        best = _improved(question, best, _alternatives, failed)
        if best.cost == before:
            break
    return best


def _improved(
    question: Question,
    best: Assignment,
    proposals: Callable[[Question, Assignment], Iterator[Choices]],
    failed: dict[tuple[tuple[Var, Order], ...], Assignment],
) -> Assignment:
    """Takes every proposal that makes things cheaper, until none does. failed: the assignment that a proposal made no cheaper;
    it is not tried on that one again."""
    tried: set[tuple[tuple[Var, Order], ...]] = set()
    while True:
        for choices in proposals(question, best):
            key = tuple(choices.items())
            if key in tried:
                continue
            tried.add(key)
            if failed.get(key) is best:
                continue
            trial = attempt(question, choices, best)
            if trial.cost < best.cost:
                best = trial.taken()
                break
            failed[key] = best
        else:
            return best


def _mended(question: Question, current: Assignment) -> Iterator[Choices]:
    """For each move, its value produced in the order in which it is read, the dearest move first."""
    for var, order in sorted(current.readers, key=lambda move: -move[0].type.size_bytes):
        yield _wish(question, current, var, order)


def _alternatives(question: Question, current: Assignment) -> Iterator[Choices]:
    """Every op that could write another order, writing it: with its operands as they are, and with them in step."""
    for index, op in enumerate(question.function.ops):
        for way, _ in question.options(index, question.given(index, current.orders)):
            if way.writes != current.orders[op.output]:
                yield {op.output: way.writes}
                yield _wish(question, current, op.output, way.writes)


def _wish(question: Question, current: Assignment, var: Var, order: Order) -> Choices:
    """What has to be chosen for a value to be produced in an order: that order, handed up from op to op."""
    wishes: dict[Var, Order] = {}
    waiting = [(var, order)]
    while waiting:
        var, order = waiting.pop()
        wishes[var] = order
        index = question.index.get(var)
        backward = None if index is None else rule_of(question.function.ops[index]).backward
        if backward is None:
            continue
        for tensor, read in zip(question.tensors[index], backward(question.function.ops[index], order)):
            if isinstance(tensor, Var) and read not in (None, current.orders[tensor]) and tensor not in wishes:
                waiting.append((tensor, read))
    return wishes


def weights_among(function: Function, inputs: frozenset[Var]) -> frozenset[Var]:
    """The values that are weights under another shape: reached from `inputs` through moves and casts alone."""
    found = set(inputs)
    for op in function.ops:
        if op.kind.name in MOVES and op.inputs and found.issuperset(op.inputs):
            found.update(op.outputs)
    return frozenset(found)
