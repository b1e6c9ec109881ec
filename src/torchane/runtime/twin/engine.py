"""The engine's functions as look-ups: what the twin's kernels need for arithmetic="engine".

A function of one fp16 number has 65,536 results. They are computed here by the NumPy rules, once, so that a
kernel cannot differ from its rule. The kernels know the rules as measured on the M4 and M6.
"""

from functools import cache

import numpy as np

from torchane import native
from torchane.chips import Chip, arithmetic_of
from torchane.errors import DeviceError
from torchane.mil.build import Builder
from torchane.mil.engine import Settings
from torchane.mil.engine.numbers import decoded, halves
from torchane.mil.engine.softmax import reciprocal
from torchane.mil.evaluate import evaluate
from torchane.mil.types import FP16, TensorType

_PATTERNS = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
_POWERS = {"cube": 3.0, "inverse": -1.0, "pow_minus_half": -0.5}


@cache
def prepare() -> None:
    """Hands the tables to the kernels. Raises DeviceError if the extension is not built."""
    unary = np.stack([unary_table(code) for code in native.UNARY])
    native.set_engine_tables(unary, reciprocal_table())


def unary_table(code: str) -> np.ndarray:
    """The results of a function by its code in native.UNARY, in the order of the patterns (65536,) fp16."""
    if code == "copy":
        return _PATTERNS
    b = Builder()
    x = b.input("x", TensorType(FP16, _PATTERNS.shape))
    result = b.pow(x=x, y=np.float16(_POWERS[code])) if code in _POWERS else getattr(b, code)(x=x)
    return evaluate(b.program(result), {"x": _PATTERNS}, arithmetic="engine")[result.name]


def reciprocal_table() -> np.ndarray:
    """1 / s of a softmax by the pattern of s; patterns that no sum has give 0."""
    s = decoded(_PATTERNS)
    return halves(np.where(s > 0, reciprocal(np.where(s > 0, s, 1.0), Settings()), 0.0))


def require_known(chip: Chip | None) -> None:
    """Raises DeviceError where the chip's data file asks for other rules than the kernels have."""
    if chip is not None and arithmetic_of(chip) != Settings():
        named = ", ".join(f"{a.name} = {a.value!r}" for a in chip.arithmetic.values())
        raise DeviceError(
            f"{chip.title}: its data file says {named}, and the twin's kernels compute as the M4 and M6 do. Take chip m4, or "
            "evaluate single programs with mil.evaluate(program, inputs, arithmetic=engine(arithmetic_of(chip)))."
        )
