"""Constants that several programs hold, once in memory: a frozen weight of a forward and its backward, a matrix of zeros and ones of every layer.

    forward   W (O, I)      ──► kept turned, (I, O)  ─┐
    backward  W^T (I, O)    ──► the same numbers      ─┴─► one array, read as it lies by either
Found by a checksum of its numbers as they lie and of those that it was turned from, and compared number by number. Gone with the last program
that holds it.
"""

import threading
import weakref

import numpy as np

from torchane import native
from torchane.native import pages

#: Constants from so many bytes on are shared.
LEAST_BYTES = 1 << 16

_Key = tuple[int, int]


def is_large(array: np.ndarray) -> bool:
    return array.nbytes >= LEAST_BYTES


class Constants:
    """Of all programs of the process. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # an array may die while this thread is inside
        self._as_it_lies: weakref.WeakValueDictionary[_Key, np.ndarray] = weakref.WeakValueDictionary()
        self._turned_from: weakref.WeakValueDictionary[_Key, np.ndarray] = weakref.WeakValueDictionary()

    def of(self, value: np.ndarray, turns: tuple[int, int] | None) -> tuple[np.ndarray, bool]:
        """The numbers of a constant, fp16, and whether with rows and columns exchanged. turns: (rows, columns) of one that is read faster so;
        it stays as it is where another program holds it like that. A small one is not shared."""
        dense = np.ascontiguousarray(value).reshape(-1)
        if not is_large(dense):
            return _made(dense, turns), turns is not None
        with self._lock:
            key = native.checksums([dense])[0], dense.size
            known = self._turned_from.get(key) if turns is not None else None
            if known is not None and _are_equal(known.reshape(turns[::-1]).T, dense.reshape(turns)):  # type: ignore[index,arg-type]
                return known, True
            known = self._as_it_lies.get(key)
            if known is not None and _are_equal(known, dense):
                return known, False
            made = _made(dense, turns)
            made.flags.writeable = False
            if turns is not None:
                self._turned_from[key] = made
            self._as_it_lies[native.checksums([made])[0], made.size] = made
            return made, turns is not None


def _made(dense: np.ndarray, turns: tuple[int, int] | None) -> np.ndarray:
    """A new array of these numbers."""
    made = pages.empty((dense.size,), np.float16)
    if turns is None:
        made[...] = dense
    else:
        native.stage(made.reshape(turns[::-1]), dense.reshape(turns).T)
    return made


def _are_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """To the bit: NaN as well, and the signs of zeros."""
    return np.array_equal(one.view(np.uint16), other.view(np.uint16))


SHARED = Constants()
