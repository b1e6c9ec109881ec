"""Which order to store every value in, so that the fewest bytes are moved.

    assign(function, choices) ── in program order, each op takes the cheapest of its options ──► Assignment
    search(function)          ── for what an assignment still moves: try to have it produced that way ──► the best

An assignment says the order of every value and how every op reads its operands; what it reads in another order
than its producer stored is a transpose, and costs the bytes of that value. Choices are orders asked for, of
inputs that are free and of results; where no option of the op writes that order, the op does what is cheapest.
Pure functions: nothing is emitted here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torchane.mil.ir import Function, Var
from torchane.passes.layout_order import Order, channels_first
from torchane.passes.layout_rules import rule_of
from torchane.passes.layout_step import Step, operands

Choices = Mapping[Var, Order]

#: How often a whole sweep of alternatives is tried; two have always been enough.
_MOST_SWEEPS = 4


@dataclass(frozen=True)
class Assignment:
    """The order of every value, the step of every op, and what is moved: pairs of a value and the order in
    which somebody reads it, with its bytes."""

    orders: Mapping[Var, Order]
    steps: tuple[Step, ...]
    moves: Mapping[tuple[Var, Order], int]
    choices: Choices
    awkward: int

    @property
    def cost(self) -> tuple[int, int]:
        """Bytes moved; then how much is awkward: operands that matmuls take transposed."""
        return sum(self.moves.values()), self.awkward


@dataclass
class Question:
    """A function and what is settled: the orders of bound inputs, the orders that outputs must leave in."""

    function: Function
    bound: Choices = field(default_factory=dict)
    wanted: Choices = field(default_factory=dict)
    weights: frozenset[Var] = frozenset()
    _options: dict[tuple[int, tuple[Order | None, ...]], tuple[Step, ...]] = field(default_factory=dict)

    def options(self, index: int, orders: tuple[Order | None, ...]) -> tuple[Step, ...]:
        """The ways to run an op, cheapest first; one per order of the result."""
        key = (index, orders)
        if key not in self._options:
            op = self.function.ops[index]
            tensors = operands(op)

            def price(step: Step) -> tuple[int, int]:
                moved = sum(
                    tensor.type.size_bytes
                    for tensor, order, read in zip(tensors, orders, step.reads)
                    if order is not None and order != read
                )
                return moved, step.awkward

            best: dict[Order, Step] = {}
            for step in sorted(rule_of(op).options(op, orders, self.weights), key=price):
                best.setdefault(step.writes, step)
            self._options[key] = tuple(best.values())
        return self._options[key]


def assign(question: Question, choices: Choices) -> Assignment:
    """The orders that follow from choices, in one walk through the program."""
    function = question.function
    orders: dict[Var, Order] = {}
    for var in function.inputs:
        orders[var] = question.bound.get(var) or choices.get(var) or channels_first(var.shape)
    steps: list[Step] = []
    moves: dict[tuple[Var, Order], int] = {}
    awkward = 0
    for index, op in enumerate(function.ops):
        tensors = operands(op)
        given = tuple(orders[tensor] if isinstance(tensor, Var) else None for tensor in tensors)
        options = question.options(index, given)
        asked = choices.get(op.output)
        step = next((option for option in options if option.writes == asked), options[0])
        for tensor, order, read in zip(tensors, given, step.reads):
            if order is not None and order != read:
                moves[tensor, read] = tensor.type.size_bytes
        orders[op.output] = step.writes
        steps.append(step)
        awkward += step.awkward
    for var, order in question.wanted.items():
        if orders[var] != order:
            moves[var, order] = var.type.size_bytes
    return Assignment(orders, tuple(steps), moves, choices, awkward)


def search(question: Question) -> Assignment:
    """The cheapest assignment found by mending one move, then one choice, at a time.

    A move is mended by having its value produced in the order in which it is read: the wish is handed up
    through ops that keep the order of what they read, to the inputs and matmuls that can grant it.
    """
    best = assign(question, {})
    for _ in range(_MOST_SWEEPS):
        before = best.cost
        best = _improved(question, best, _mended)
        best = _improved(question, best, _alternatives)
        if best.cost == before:
            break
    return best


def _improved(
    question: Question, best: Assignment, proposals: Callable[[Question, Assignment], Iterator[Choices]]
) -> Assignment:
    """Takes every proposal that makes things cheaper, until none does."""
    tried: set[tuple[tuple[Var, Order], ...]] = set()
    while True:
        for choices in proposals(question, best):
            key = tuple(choices.items())
            if key in tried:
                continue
            tried.add(key)
            trial = assign(question, {**best.choices, **choices})
            if trial.cost < best.cost:
                best = trial
                break
        else:
            return best


def _mended(question: Question, current: Assignment) -> Iterator[Choices]:
    """For each move, its value produced in the order in which it is read, the dearest move first; the other way
    round too: the reader's result as the value lies."""
    for (var, order), _ in sorted(current.moves.items(), key=lambda item: -item[1]):
        wishes: dict[Var, Order] = {}
        _wish(question.function, current, var, order, wishes)
        yield wishes


def _wish(function: Function, current: Assignment, var: Var, order: Order, wishes: dict[Var, Order]) -> None:
    wishes[var] = order
    op = function.producer.get(var)
    if op is None:
        return
    backward = rule_of(op).backward
    if backward is None:
        return
    for tensor, read in zip(operands(op), backward(op, order)):
        if isinstance(tensor, Var) and read is not None and current.orders[tensor] != read and tensor not in wishes:
            _wish(function, current, tensor, read, wishes)


def _alternatives(question: Question, current: Assignment) -> Iterator[Choices]:
    """Every op that could write another order, writing it."""
    for index, op in enumerate(question.function.ops):
        given = tuple(current.orders[t] if isinstance(t, Var) else None for t in operands(op))
        for option in question.options(index, given):
            if option.writes != current.orders[op.output]:
                yield {op.output: option.writes}


def weights_among(function: Function, inputs: frozenset[Var]) -> frozenset[Var]:
    """The values that are weights under another shape: reached from `inputs` through moves and casts."""
    found = set(inputs)
    for op in function.ops:
        if op.kind.name in ("transpose", "reshape", "squeeze", "expand_dims", "cast", "identity"):
            if found.issuperset(op.inputs) and op.inputs:
                found.update(op.outputs)
    return frozenset(found)
