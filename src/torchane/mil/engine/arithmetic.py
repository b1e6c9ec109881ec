"""The engine's arithmetic as one that `mil.evaluate` takes."""

from dataclasses import dataclass, field

import numpy as np

from torchane.mil.engine import rules as _rules  # noqa: F401  (fills the table of rules)
from torchane.mil.engine.fusion import fused
from torchane.mil.engine.numbers import decoded, halves
from torchane.mil.engine.records import rules
from torchane.mil.engine.settings import Settings
from torchane.mil.evaluate import ARITHMETICS, Arithmetic
from torchane.mil.formats import narrowed
from torchane.mil.types import FP16, DType


@dataclass(frozen=True)
class EngineArithmetic(Arithmetic):
    """fp16 is read and written as the engine does; other element types as `exact` has them."""

    settings: Settings = field(default_factory=Settings)

    def admits(self, array: np.ndarray, dtype: DType) -> np.ndarray:
        """The host fills surfaces, and rounds halves to even."""
        return array if array.dtype == dtype.numpy else narrowed(array, dtype)

    def loads(self, array: np.ndarray, dtype: DType) -> np.ndarray:
        return decoded(array) if dtype is FP16 else super().loads(array, dtype)


def engine(settings: Settings | None = None) -> EngineArithmetic:
    """The arithmetic under these assumptions, or under those that were measured on M4 and M6."""
    settings = settings or Settings()

    def stores(array: np.ndarray, dtype: DType) -> np.ndarray:
        return halves(array, settings.ties) if dtype is FP16 else narrowed(array, dtype)

    prepares = {"prepares": fused} if settings.silu == "fused" else {}
    return EngineArithmetic("engine", stores, rules=rules(settings), settings=settings, **prepares)


ENGINE = engine()
ARITHMETICS["engine"] = ENGINE
