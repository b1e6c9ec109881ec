"""Are the engine's numbers right? A dispatch compared with the twin, on the very inputs that it had.

    twin(inputs) = want      twin(inputs, each moved by some steps of fp16) - want = what a rounding does to an output
    |engine - want| <= that x the roundings that the program's ops are allowed, as a root mean square

The twin computes in the engine's own arithmetic, so that what is known of it is no difference. An op is allowed what tolerances.json
lists, or what torchane doctor measured of it on this machine where it was right and that is more. How far one rounding is carried
differs between programs by orders of magnitude (a softmax damps, a norm of small numbers magnifies): so it is measured, on these
inputs, and not assumed. Single numbers may be further off than the whole, as far as one step throws them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

import numpy as np

from torchane.native import pages
from torchane.runtime.twin import TwinDevice, TwinProgram

#: One step of fp16, relative.
STEP = 2.0**-10
#: Inputs are moved by so many steps at most, and the effect is counted per step: one step alone would miss the numbers that
#: turn over only when an engine is that far off, as a softmax's winner does.
MOVES = 4
#: So often the inputs are moved before an output is called wrong: a number that may turn over does not each time.
LOOKS = 8
#: The root mean square of whole numbers from -MOVES to MOVES, in that of -1 to 1.
MOVES_RMS = math.sqrt(MOVES * (MOVES + 1) / 2)
#: What is taken for rounding, in effects of one step: a fixed part, for results that an engine rounds up to 4 steps off, and a
#: share of what all ops may be off together. Chosen so that such an engine stays below half of it (tests/runtime/ane/test_verify.py).
BASE, SHARE = 8.0, 0.3
#: How much further off than the whole a single number may be: so often, or in proportion to how far one step throws single
#: numbers (where a softmax changes its mind, much further than most).
PEAK, TAIL = 8.0, 2.0
#: Below this all is noise: the smallest numbers of fp16.
FLOOR = 2.0**-20
#: Share of an output that may be finite on one side only, where numbers are near the end of the range: from EDGE on, or infinite on one
#: side once the inputs are moved.
MOST_NONFINITE = 0.01
EDGE = 2.0**14
#: Doctor calls an op right up to 2^-8 of its largest number, which are four steps.
MOST_MEASURED = 4.0
#: For an op that tolerances.json does not list: one step of fp16, doubled.
UNLISTED = 2 * STEP


@dataclass(frozen=True)
class Difference:
    """An output that is not what the twin has. rms and limit are relative to the output's own root mean square. one_sided: how many numbers
    are infinite or NaN in one of both alone, where that is what is wrong."""

    output: int
    rms: float
    limit: float
    peak: float
    one_sided: int = 0

    def __str__(self) -> str:
        if self.one_sided:
            return f"output {self.output}: {self.one_sided:,} numbers are infinite or NaN, or are not and should be"
        return f"output {self.output}: {self.rms:.2%} off as a root mean square, {self.limit:.2%} is rounding; largest {self.peak:.2%}"


class Verifier:
    """Compares dispatches with the twin. Not for two threads at once.

    measured: how many steps of fp16 an op was off on this machine, where torchane doctor found it right: more is not asked of it.
    """

    def __init__(self, measured: Mapping[str, float] | None = None) -> None:
        self.measured = dict(measured or {})
        self.twin = TwinDevice(arithmetic="engine")
        self._rng = np.random.default_rng(0)

    def expected(self, program: TwinProgram, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The twin's outputs."""
        outputs = [pages.empty(port.shape, np.float16) for port in program.outputs]  # type: ignore[arg-type]
        self.twin.run_arrays(program, inputs, outputs)
        return outputs

    def differences(
        self, program: TwinProgram, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], want: Sequence[np.ndarray]
    ) -> list[Difference]:
        """Every output that is further from `want` than rounding explains."""
        budget = roundings(program.stats.float_ops, self.measured)
        thrown = [np.zeros(right.shape, np.float32) for right in want]
        turned = [np.zeros(right.shape, bool) for right in want]
        found: list[Difference] = []
        for _ in range(LOOKS):
            moved = self.expected(program, [self._moved(array) for array in inputs])
            for furthest, turns, other, right in zip(thrown, turned, moved, want, strict=True):
                np.fmax(furthest, _apart(other, right), out=furthest)
                turns |= np.isfinite(other) != np.isfinite(right)
            judged = (_difference(i, *given, budget) for i, given in enumerate(zip(outputs, want, thrown, turned, strict=True)))
            found = [one for one in judged if one is not None]
            if not found:
                break
        return found

    def _moved(self, array: np.ndarray) -> np.ndarray:
        """Each number of it some steps up, down or as it is; zeros and what is not finite stay."""
        bits = array.view(np.int16)
        magnitude = bits & 0x7FFF
        steps = self._rng.integers(-MOVES, MOVES + 1, array.shape, np.int16)
        can_move = (magnitude > MOVES) & (magnitude < 0x7BFF - MOVES)
        return np.where(can_move, bits + steps, bits).view(np.float16)


@cache
def _tolerances() -> Mapping[str, float]:
    text = resources.files("torchane.runtime").joinpath("tolerances.json").read_text(encoding="utf-8")
    return {name: float(values["rtol"]) for name, values in json.loads(text)["ops"].items()}


def roundings(float_ops: Mapping[str, int], measured: Mapping[str, float] = MappingProxyType({})) -> float:
    """How many steps of fp16 a program's ops may be off together, independent of one another: by tolerances.json, or what was measured, of
    which no more than MOST_MEASURED counts."""
    known = _tolerances()

    def steps(name: str) -> float:
        return max(known.get(name, UNLISTED) / STEP, min(measured.get(name, 0.0), MOST_MEASURED))

    return math.sqrt(sum(count * steps(name) ** 2 for name, count in float_ops.items()))


def _apart(other: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How far one step throws each number; nothing where one of them is not finite."""
    with np.errstate(invalid="ignore"):
        off = np.abs(other.astype(np.float32) - right.astype(np.float32)) / np.float32(MOVES_RMS)
    return np.where(np.isfinite(off), off, np.float32(0))


def _difference(index: int, got: np.ndarray, want: np.ndarray, thrown: np.ndarray, turned: np.ndarray, budget: float) -> Difference | None:
    wide, right = got.astype(np.float32), want.astype(np.float32)
    finite = np.isfinite(wide) & np.isfinite(right)
    one_sided = np.isfinite(wide) != np.isfinite(right)
    if one_sided.any():
        is_at_the_edge = turned | (np.where(np.isfinite(wide), np.abs(wide), np.abs(right)) >= EDGE)
        if (one_sided & ~is_at_the_edge).any() or one_sided.mean() > MOST_NONFINITE:
            return Difference(index, math.inf, 0.0, math.inf, int(one_sided.sum()))
    size, off, step = _rms(right[finite]), np.abs(wide[finite] - right[finite]), thrown[finite]
    one_step = max(_rms(step), STEP * size / 2)
    most = max(PEAK, TAIL * float(step.max(initial=0.0)) / (one_step or 1.0))
    limit = (BASE + SHARE * budget) * one_step + FLOOR
    rms, peak = _rms(off), float(off.max(initial=0.0))
    if rms <= limit and peak <= most * max(limit, STEP * float(np.abs(right[finite]).max(initial=0.0))):
        return None
    scale = size or 1.0
    return Difference(index, rms / scale, limit / scale, peak / scale)


def _rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if array.size else 0.0
