"""Which compiled graphs are there, and which of them are in use.

    Kept     every graph by number, as long as something else holds it; the last one always
    Recent   graphs in the order of their last use; what falls behind is told to rest

torch drops a compiled graph when its model dies or torch._dynamo.reset() is called; nothing here keeps it alive.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar, overload

T = TypeVar("T")


class Kept(Generic[T]):
    """A list of weak references. A number stays that of its graph when others are gone."""

    def __init__(self) -> None:
        self._references: list[weakref.ref[T]] = []
        self._last: T | None = None

    def append(self, item: T) -> None:
        self._references.append(weakref.ref(item))
        self._last = item

    def __len__(self) -> int:
        """How many there ever were."""
        return len(self._references)

    def __iter__(self) -> Iterator[T]:
        return iter(self[:])

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        """One graph, or those of a slice that are still there. Raises LookupError for one that is gone."""
        if isinstance(index, slice):
            return [item for reference in self._references[index] if (item := reference()) is not None]
        item = self._references[index]()
        if item is None:
            raise LookupError(f"graph {index} of {len(self)} is gone: torch dropped it with its model.")
        return item

    def __delitem__(self, index: slice) -> None:
        del self._references[index]
        self._last = None

    def index(self, item: T) -> int:
        return next(i for i, reference in enumerate(self._references) if reference() is item)


class Recent(Generic[T]):
    """Calls `rest(item)` for what was not among the last `most` to be used. Any thread may use an item."""

    def __init__(self, rest: Callable[[T], None]):
        self._rest = rest
        self._used: list[weakref.ref[T]] = []
        self._lock = threading.Lock()

    def use(self, item: T, most: int) -> None:
        with self._lock:
            if self._used and self._used[-1]() is item:
                return
            others = [reference for reference in self._used if reference() not in (None, item)]
            first = max(0, len(others) + 1 - most)
            behind, self._used = others[:first], [*others[first:], weakref.ref(item)]
        for reference in behind:
            old = reference()
            if old is not None:
                self._rest(old)
