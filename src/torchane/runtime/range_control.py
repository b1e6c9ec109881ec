"""Chooses the powers of two of range-controlled programs, dispatch by dispatch.

    largest magnitudes of the last steps ──► exponents ──► multipliers ──► the program runs ──► its statistics
         └──────────────────────────────── history ◄────────────── fine? ◄──────┘   an overflow: smaller, and again

Delayed scaling, as FP8 training does it (Micikevicius et al. 2022, arXiv 2209.05433; NVIDIA Transformer Engine): a
scale follows the largest magnitude over a short history and moves only if it is off by more than a digit or two. The
first run of a dispatch has no history: it runs until its exponents stop changing. An overflow is seen in the
statistics, and the program runs again at once, its inputs being still there: no step is lost.
What is true of a value is stored * 2^-exponent; magnitudes are kept as the exponent e with 2^(e-1) <= |x| < 2^e.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchane.abi.numbers import FP16_MAX, SUM_MAX
from torchane.abi.ranges import SUM_END, Bound, Form, Ranges
from torchane.errors import NumericsError

#: Steps that the largest magnitude of a value is remembered for.
HISTORY = 16
#: An exponent stays where it is while the one wanted is no more than this above or below.
ABOVE, BELOW = 2, 1
#: The powers of two that a multiplier can be: fp16's own.
SMALLEST, LARGEST = -24, 15
#: Where tensors that come from the host are placed: their largest magnitude, as a power of two.
WEIGHTS, ACTIVATIONS, GRADIENTS = 3, 3, 11
#: Exponents of activations: one multiplier brings them back to true numbers.
LEAST_ACTIVATION, MOST_ACTIVATION = -12, 20
MAX_RUNS = 24
#: How far an estimate moves that was far too small (an overflow) or too large (nothing was left).
JUMP, FALL = 6, 16
FALLS = 2
#: The magnitude stored of a value of which nothing is known yet.
WELL = 4


@dataclass(frozen=True)
class Placed:
    """How a value lies in its surface: stored = true * 2^exponent. size: of its largest true magnitude; None if all is 0."""

    exponent: int = 0
    size: int | None = None


def size_of(largest: float) -> int | None:
    """e with 2^(e-1) <= largest < 2^e; None for 0. What is not finite counts as fp16's end."""
    if not math.isfinite(largest):
        return 17
    return math.frexp(largest)[1] if largest > 0 else None


def placed_at(largest: float, target: int, least: int = -126, most: int = 126) -> Placed:
    """Where a host value goes whose largest magnitude is `largest`."""
    size = size_of(largest)
    if size is None or not math.isfinite(largest):
        return Placed(0, size)
    return Placed(max(least, min(most, target - size)), size)


@dataclass
class DispatchRanges:
    """What is remembered of one dispatch of a plan from step to step."""

    exponents: dict[str, int] = field(default_factory=dict)
    history: dict[int, list[int]] = field(default_factory=dict)  # by the index of the measure, newest last
    reruns: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"exponents": self.exponents, "history": {str(k): v for k, v in self.history.items()}, "reruns": self.reruns}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "DispatchRanges":
        history = {int(key): [int(size) for size in sizes] for key, sizes in data["history"].items()}
        return cls({key: int(value) for key, value in data["exponents"].items()}, history, int(data["reruns"]))


@dataclass
class RangeControl:
    """All that range control remembers of one compiled graph: of every dispatch of its plans, by the plan's name."""

    plans: dict[str, list[DispatchRanges]] = field(default_factory=dict)

    def of(self, plan: str, dispatches: int) -> list[DispatchRanges]:
        """The memory of a plan's dispatches, in their order."""
        return self.plans.setdefault(plan, [DispatchRanges() for _ in range(dispatches)])

    @property
    def reruns(self) -> int:
        """Runs of programs beyond one per dispatch, since the beginning."""
        return sum(one.reruns for plan in self.plans.values() for one in plan)

    def to_dict(self) -> dict[str, Any]:
        return {name: [one.to_dict() for one in plan] for name, plan in self.plans.items()}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Takes what `to_dict` gave, for the same plans. Raises ValueError for another number of dispatches."""
        for name, plan in data.items():
            mine = self.plans.setdefault(name, [DispatchRanges() for _ in plan])
            for one, saved in zip(mine, plan, strict=True):
                other = DispatchRanges.from_dict(saved)
                one.exponents, one.history, one.reruns = other.exponents, other.history, other.reruns


#: Runs the program with multipliers 2^k; gives the largest magnitudes stored: rows of the port, outputs; inf for what is
#: not a number.
Run = Callable[[Sequence[int]], tuple[Sequence[float], Sequence[float]]]


def controlled(
    ranges: Ranges,
    state: DispatchRanges,
    inputs: Sequence[Placed],
    run: Run,
    where: str,
    like: DispatchRanges | None = None,
) -> list[Placed]:
    """Runs a program until its values are in range; how its outputs lie. Raises NumericsError where nothing helps.

    like: what is remembered of another dispatch of the program, for a first guess.
    """
    attempt = _Attempt(ranges, state, inputs, like)
    for count in range(MAX_RUNS):
        known = attempt.exponents()
        powers = [form.at(known) for form in ranges.multipliers]
        _require_possible(powers, ranges, where)
        rows, outputs = run([max(SMALLEST - 1, power) for power in powers])
        if attempt.accepts(known, rows, outputs, where):
            state.reruns += count
            attempt.remember(known)
            return [
                Placed(form.at(known), None if (size := size_of(largest)) is None else size - form.at(known))
                for form, largest in zip(ranges.outputs, outputs, strict=True)
            ]
    raise NumericsError(f"{where}: {attempt.trouble} does not come into range in {MAX_RUNS} runs of its program.")


class _Attempt:
    """One dispatch: what is believed of magnitudes, corrected from run to run."""

    def __init__(self, ranges: Ranges, state: DispatchRanges, inputs: Sequence[Placed], like: DispatchRanges | None):
        self.ranges = ranges
        self.state = state
        self.inputs = {f"i{index}": one.exponent for index, one in enumerate(inputs)}
        self.sizes: dict[int, int] = {}
        self.measured: dict[int, int] = {}
        self.falls: dict[int, int] = {}
        self.settled = all(self._is_known(index) for index in range(len(ranges.measures)))
        self.trouble = ""
        self.kept = dict(state.exponents)
        for index, measure in enumerate(ranges.measures):
            if measure.place == "input":
                size = inputs[measure.index].size
                if size is not None:
                    self.sizes[index] = size
            elif state.history.get(index):
                self.sizes[index] = max(state.history[index])
            elif index not in state.history and like is not None and like.history.get(index):
                self.sizes[index] = like.history[index][-1]

    def _is_known(self, index: int) -> bool:
        return self.ranges.measures[index].place == "input" or index in self.state.history

    def exponents(self) -> dict[str, int]:
        """Every variable's value, the inputs' among them."""
        known = dict(self.inputs)
        for name in self.ranges.variables:
            known[name] = self._exponent(name, known)
        return known

    def _exponent(self, name: str, known: Mapping[str, int]) -> int:
        most, least = [], []  # the first keep results from overflowing, the others operands that shrink as this one grows
        for bound in self.ranges.bounds:
            if bound.knob == name and bound.guess is not None and not self._is_known(bound.measure):
                self._guess(bound, known)
            if bound.knob == name and bound.measure in self.sizes:
                count = bound.form.coefficient(name)
                room = bound.target - self.sizes[bound.measure] - bound.form.without(name).at(known)
                (most if count > 0 else least).append(room // count if count > 0 else -(room // -count))
        own = [form for form in self.ranges.multipliers if form.coefficient(name) and _is_last(form, name, known)]
        if most or least:
            best = min(most) if most else max(least)
            if least and max(least) > best:  # both have room above their targets: halfway
                best = (best + max(least) + 1) // 2
            before = self.kept.get(name)
            if before is not None and best - ABOVE <= before <= best + BELOW:
                best = before
        else:  # nothing is known yet: a multiplier of 1
            first = next((form for form in own if form.coefficient(name) == 1), None)
            best = 0 if first is None else -first.without(name).at(known)
        for form in own:
            best = _clipped(best, form.coefficient(name), form.without(name).at(known))
        return best

    def _guess(self, bound: Bound, known: Mapping[str, int]) -> None:
        """A product before its first run: so many digits more than its operands have."""
        if bound.measure not in self.sizes and bound.guess is not None:
            *sides, inner = bound.guess
            self.sizes[bound.measure] = inner - 2 + sum(self._size(side, known) for side in sides)

    def _size(self, measure: int, known: Mapping[str, int]) -> int:
        """Of a value that nothing is known of: that of one that lies well."""
        if measure < 0:
            return 0
        form = self.ranges.measures[measure].form
        lying = form.at(known) if all(name in known for name, _ in form.terms) else 0
        return self.sizes.get(measure, WELL - lying)

    def accepts(self, known: Mapping[str, int], rows: Sequence[float], outputs: Sequence[float], where: str) -> bool:
        """Whether a run was good; else what is believed of magnitudes has changed."""
        self.measured = {}
        stuck: tuple[str, float] | None = None
        broken: set[int] = set()
        empty: set[int] = set()
        for bound in self.ranges.bounds:
            measure = self.ranges.measures[bound.measure]
            if measure.place == "input":
                continue
            largest = (rows if measure.place == "row" else outputs)[measure.index]
            if self._is_over(bound, largest, measure.form, known):
                if bound.knob is None:
                    stuck = stuck or (bound.what, largest)
                    continue
                broken.add(bound.measure)
                self.trouble = bound.what
            elif (size := size_of(largest)) is None:
                empty.add(bound.measure)
            else:
                self.measured[bound.measure] = size - measure.form.at(known)
        for index in broken:
            self.measured.pop(index, None)
        if broken:
            for index in broken:
                least = max(self._stored(index, rows, outputs, known), self.sizes.get(index, -999))
                self.sizes[index] = least + JUMP
            self.kept = {}
            return False
        if self.settled and stuck is None:
            return True
        for index in empty:
            if not self._is_known(index) and self.falls.get(index, 0) < FALLS:
                self.falls[index] = self.falls.get(index, 0) + 1
                at = self.ranges.measures[index].form.at(known)
                self.sizes[index] = min(self.sizes.get(index, -at), -at) - FALL
        for index, size in self.measured.items():
            if not self._is_known(index):
                self.sizes[index] = size
        self.kept = dict(known)
        stands = self.exponents() == known
        if stands and stuck is not None:  # nothing else is wrong, so it is not another value's overflow that shows there
            raise NumericsError(
                f"{where}: {stuck[0]} reaches {stuck[1]:g} and cannot be stored smaller, for it is read as it is. An activation "
                "or a weight is too large for fp16: lower the learning rate or resume from an earlier checkpoint."
            )
        return stands

    def _is_over(self, bound: Bound, largest: float, at: Form, known: Mapping[str, int]) -> bool:
        limit = SUM_MAX if bound.ceiling == SUM_END else FP16_MAX
        return not math.isfinite(largest) or math.ldexp(largest, bound.form.at(known) - at.at(known)) >= limit

    def _stored(self, index: int, rows: Sequence[float], outputs: Sequence[float], known: Mapping[str, int]) -> int:
        measure = self.ranges.measures[index]
        size = size_of((rows if measure.place == "row" else outputs)[measure.index])
        assert size is not None, "zero is no overflow"
        return size - measure.form.at(known)

    def remember(self, known: Mapping[str, int]) -> None:
        self.state.exponents = {name: known[name] for name in self.ranges.variables}
        for index, measure in enumerate(self.ranges.measures):
            if measure.place == "input":
                continue
            sizes = self.state.history.setdefault(index, [])
            if index in self.measured:
                sizes.append(self.measured[index])
                del sizes[:-HISTORY]


def _is_last(form: Form, name: str, known: Mapping[str, int]) -> bool:
    """Every other variable of the form is known by now."""
    return all(other == name or other in known for other, _ in form.terms)


def _clipped(value: int, coefficient: int, rest: int) -> int:
    """The value nearest to `value` at which coefficient * value + rest is a power that a multiplier can be."""
    while coefficient * value + rest > LARGEST:
        value -= 1 if coefficient > 0 else -1
    while coefficient * value + rest < SMALLEST:
        value += 1 if coefficient > 0 else -1
    return value


def _require_possible(powers: Sequence[int], ranges: Ranges, where: str) -> None:
    for power, form in zip(powers, ranges.multipliers, strict=True):
        if power > LARGEST:
            raise NumericsError(
                f"{where}: range control needs a factor of 2^{power} ({form}), and fp16 ends at 2^{LARGEST}: two values that are "
                "added are too far apart, or one is too large for fp16 as it is. Lower the learning rate."
            )
