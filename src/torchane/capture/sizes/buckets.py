"""Which size a program has that serves a true one.

    true size     1..32  33..64  65..96  97..128  129..192  193..256  257..384 ..      first axes (batches, rows): 2, 4, 8, 16, 32, ..
    bucket          32      64      96      128       192       256       384
Steps grow with the size, so that a size from 8 to 512 has one of eight programs, and filling up never costs more than half as much
again from 64 on.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchane.errors import UsageError, shown

#: Sizes are multiples of it from here on: programs want that of a last axis (docs/limits.md).
STEP = 32
#: Up to here a dispatch costs more than its arithmetic.
_SMALL = 128


@dataclass(frozen=True)
class Buckets:
    """sizes: the user's; empty for the growing steps above. is_on: False where every size has a program of its own."""

    sizes: tuple[int, ...] = ()
    is_on: bool = True

    @classmethod
    def parse(cls, value: Any) -> "Buckets":
        """"auto", "off", or sizes that grow: (64, 128, 512) or "64,128,512". Raises UsageError."""
        if value in ("auto", "off"):
            return cls(is_on=value == "auto")
        if isinstance(value, str):
            parts: Sequence[Any] = [int(part) if part.strip().isdigit() else part for part in value.split(",")]
        else:
            parts = value
        wrong = f"torch.compile(backend='ane'): buckets is {shown(value)}"
        if not isinstance(parts, list | tuple) or not parts or not all(type(size) is int and size > 0 for size in parts):
            raise UsageError(f'{wrong}. It is "auto", "off", or sizes that grow, as in (64, 128, 512).')
        if list(parts) != sorted(set(parts)):
            raise UsageError(f"{wrong}, and sizes must grow: each program serves the sizes up to its own. Write {tuple(sorted(set(parts)))}.")
        return cls(tuple(parts))

    def lends(self, larger: Sequence[int], wanted: Sequence[int], work: float) -> bool:
        """Whether a program of these sizes may serve a bucket that has none. work: how many times that bucket's it is; at most three times,
        four where both are small. The user's own buckets lend nothing."""
        if self.sizes or not all(a >= b for a, b in zip(larger, wanted, strict=True)):
            return False
        return work <= (4 if max(larger) <= _SMALL else 3)

    @staticmethod
    def doubled(size: int) -> int:
        """The power of two that holds it."""
        return 1 << (size - 1).bit_length()

    def of(self, size: int, is_first: bool) -> int:
        """The bucket of a true size. is_first: it is that of a first axis, as batches have, which is often small."""
        if self.sizes:
            place = bisect_left(self.sizes, size)
            return self.sizes[place] if place < len(self.sizes) else -(-size // self.sizes[-1]) * self.sizes[-1]
        if is_first and size <= STEP:
            return 1 << max(size - 1, 1).bit_length()
        step = max(STEP, 1 << (size - 1).bit_length() - 2 if size > 4 else 0)
        return -(-size // step) * step
