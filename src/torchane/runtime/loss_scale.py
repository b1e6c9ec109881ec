"""The loss scale: where in fp16's range the gradients are placed, decided at the boundary.

    tangent (fp32) --x 2^k--> programs (fp16) --/ 2^k--> gradient (fp32)

2^k is a power of two, so the scaling itself loses nothing. k follows the incoming gradient: its largest
magnitude is brought to 2^target. Where any program output overflows, the backward runs again with a
smaller target, and where all of them are faint (the gradient of a mean over many numbers, close to the optimum), once
more with a larger one; where a growing share of results is exactly zero, the target rises. So a loop that
scales its own loss sees the same results, and no step is lost.
Source of the idea: Micikevicius et al. 2018, arXiv 1710.03740, section 3.2.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from torchane.abi.numbers import SUM_MAX
from torchane.errors import NumericsError, TorchaneWarning

#: Small enough that a first step rarely overflows, large enough that attention's gradients, 2^-20 of the largest in a fresh
#: model, keep their digits: in a small BERT they are within 0.4 % of fp32 from 8 on, and 2 % off at 4.
START_TARGET = 8
HIGHEST_TARGET = 12
MAX_TRIES = 24
#: Results that all lie below are faint: fp16 keeps 2^14 below it in full, and a model's gradients spread that far.
FAINT = 1.0
#: As far as faint results raise the target: the incoming gradient is itself fp16, and stays below the ceiling.
FAINT_TARGET = 14
#: The same for gradients that begin inside a graph, with 1: the largest that is staged may be a thousandth of a millionth of it.
OWN_TARGET = 40
#: Below it the incoming gradient has fewer digits than fp16: a backward made it 2^20 times larger and more on its way.
FADED_TARGET = -6
#: The share of exact zeros may exceed the lowest seen by this much before the scale rises.
ZERO_SHARE_MARGIN = 0.02
#: Steps without overflow before the scale may rise.
PATIENCE = 20

Result = TypeVar("Result")


@dataclass
class Reading:
    """What program outputs of one run looked like, in scaled fp16."""

    largest: float = 0.0
    nonfinite: int = 0
    zeros: int = 0
    count: int = 0
    where: str = ""  # the value that is largest or not finite
    faint: list[str] = field(default_factory=list)  # results below 2^-20 throughout, which have few digits or none

    def add(self, name: str, largest: float, nonfinite: int, zeros: int, count: int) -> None:
        if nonfinite or largest > self.largest:
            self.where = name if nonfinite or not self.nonfinite else self.where
        self.largest = max(self.largest, largest)
        self.nonfinite += nonfinite
        self.zeros += zeros
        self.count += count

    @property
    def overflowed(self) -> bool:
        return self.nonfinite > 0 or self.largest >= SUM_MAX

    @property
    def zero_share(self) -> float:
        return self.zeros / self.count if self.count else 0.0


@dataclass
class LossScale:
    """The state between steps. `retries` and `raises` count what happened, for reports."""

    target: int = START_TARGET
    retries: int = 0
    raises: int = 0
    calm_steps: int = 0
    lowest_zero_share: float = field(default=1.0)
    last_scale: float = 1.0
    #: What faint results may raise the target to: less than what has overflowed.
    highest: int = FAINT_TARGET
    said_faded = False  # no field: a checkpoint has no use for it

    def __post_init__(self) -> None:
        self.faint: list[str] = []  # results of the last run that are below 2^-20 throughout; no field either

    def run(self, largest_tangent: float, backward: Callable[[float], tuple[Result, Reading]], strict: bool = False) -> Result:
        """Runs `backward(scale)` until nothing overflows, and not everything is faint for want of a larger scale.

        largest_tangent: the largest magnitude of the incoming gradients. Raises NumericsError where it
        is not finite (the loss itself is NaN or infinite), or where no scale helps. strict: where one loses digits, too, which
        is else warned of.
        """
        require_finite(largest_tangent)
        exponent = math.frexp(largest_tangent)[1] if largest_tangent > 0 else 0
        reading = Reading()
        for _ in range(MAX_TRIES):
            self.last_scale = math.ldexp(1.0, max(-126, min(126, self.target - exponent)))
            result, reading = backward(self.last_scale)
            if reading.overflowed:
                self.target -= 2
                self.highest = min(self.highest, self.target)
                self.retries += 1
                self.calm_steps = 0
            elif largest_tangent > 0 and reading.count and reading.largest < FAINT and self.target < self.highest:
                self.target = self._raised(reading.largest)
                self.raises += 1
            else:
                self._settle(reading)
                self.faint = reading.faint
                if self.target < FADED_TARGET and largest_tangent > 0:
                    self._say_faded(largest_tangent, reading, strict)
                return result
        raise NumericsError(
            f"The backward programs overflow at every loss scale down to {self.last_scale:g}: {reading.where} "
            f"{'is not finite' if reading.nonfinite else f'reaches {reading.largest:g}'}."
        )

    def _say_faded(self, largest_tangent: float, reading: Reading, strict: bool) -> None:
        grown = f" ({reading.where}: {reading.largest / self.last_scale:.2g})" if reading.where else ""
        text = (
            f"The backward makes the incoming gradient ({largest_tangent:.2g}) so much larger on its way{grown} that no one scale keeps both "
            'in fp16: small gradients lose digits or vanish. Compile with options={"ranges": "on"}, which gives every tensor a scale of its '
            "own, or scale what grows."
        )
        if strict:
            raise NumericsError(text)
        if not self.said_faded:
            self.said_faded = True
            warnings.warn(f"{text} Said once for this graph.", TorchaneWarning, stacklevel=2)

    def _raised(self, largest: float) -> int:
        """A target at which the largest result would be 2^START_TARGET or so, if one is allowed."""
        missing = START_TARGET - math.frexp(largest)[1] if largest else FAINT_TARGET
        return min(self.target + missing, self.highest)

    def _settle(self, reading: Reading) -> None:
        self.calm_steps += 1
        share = reading.zero_share
        grew = share > self.lowest_zero_share + ZERO_SHARE_MARGIN
        self.lowest_zero_share = min(self.lowest_zero_share, share)
        has_room = reading.largest * 4 < SUM_MAX and self.target < HIGHEST_TARGET
        if grew and has_room and self.calm_steps >= PATIENCE:
            self.target += 1
            self.raises += 1
            self.calm_steps = 0


def require_finite(largest_tangent: float) -> None:
    """Raises NumericsError where the incoming gradient is not."""
    if not math.isfinite(largest_tangent):
        raise NumericsError(
            "The gradient that enters the backward programs is not finite: the loss itself is NaN or infinite. Look at the batch, "
            "lower the learning rate, clip gradients, or resume from the last good checkpoint."
        )
