"""Large arrays in large pages, so that fresh memory costs one fault for 2 MiB instead of 512.

    | rest | 2 MiB page | 2 MiB page | ... |      NumPy asks Linux for large pages from 4 MiB on; an array gets them
           ^ the array begins                    only where a whole page fits, hence the beginning at one's border

torch and NumPy begin an array anywhere, and torch asks for nothing. Elsewhere than on Linux nothing changes. A virtual machine
that hands its free memory back to its host is another matter: what it hands back are whole blocks of 2 MiB and more, and a fault in one
waits for the host (5 s a GiB were measured), while small pages are first taken from smaller blocks, which it keeps. There arrays get small pages.
`Reused` keeps what nobody refers to any more for the next step, instead of handing it back to the kernel and faulting it
in anew. `Fetching` has a thread of its own write to the pages that will be needed, while this one does something else. Sources: numpy/_core/src/multiarray/alloc.c, indicate_hugepages; Linux, Documentation/mm/free_page_reporting.rst; Virtual I/O Device
1.2, 5.5.3.
"""

import contextlib
import functools
import math
import mmap
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from torchane import native

PAGE_BYTES = 2 << 20
#: Surfaces are promised to begin at a multiple of this (runtime/device.py).
LINE_BYTES = 64
#: From here on NumPy asks for large pages.
LARGE_BYTES = 4 << 20
#: What takes less is written before a thread would have begun.
FETCHED_BYTES = 64 << 20
#: Where Linux lists the balloons of a virtual machine, and the feature bit of one that hands free memory back.
BALLOONS = Path("/sys/bus/virtio/drivers/virtio_balloon")
REPORTS_FREE_PAGES = 5


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray[Any, Any]:
    """A new dense array, not filled."""
    return _aligned(np.empty, shape, np.dtype(dtype))


def zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray[Any, Any]:
    """A new dense array of zeros; a large one takes no memory before it is written."""
    return _aligned(np.zeros, shape, np.dtype(dtype))


def _aligned(make: Callable[..., np.ndarray[Any, Any]], shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    size = math.prod(shape) * dtype.itemsize
    if size >= LARGE_BYTES and hands_memory_back():
        return _in_small_pages(size).view(dtype).reshape(shape)
    is_worth_it = size >= PAGE_BYTES and -size % PAGE_BYTES <= size // 8  # the last page is taken whole
    border = PAGE_BYTES if is_worth_it else LINE_BYTES
    memory = make(size + border, np.uint8)
    start = -memory.__array_interface__["data"][0] % border
    return memory[start : start + size].view(dtype).reshape(shape)


def _in_small_pages(size_bytes: int) -> np.ndarray[Any, Any]:
    """Zeros, which take no memory before they are written."""
    with _lock:
        found = _reserve.take(size_bytes) if _reserve is not None else None
    return np.frombuffer(_small_pages(size_bytes), np.uint8) if found is None else found


def _small_pages(size_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel that knows no large pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


class _Reserve:
    """Memory that later arrays are cut from, so that it can be fetched before they are asked for. What an array took goes back to the system with the array."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = _small_pages(size_bytes)
        self._size = size_bytes
        self._taken = 0
        self.whole = np.frombuffer(self._memory, np.uint8)

    def take(self, size_bytes: int) -> np.ndarray[Any, Any] | None:
        """Zeros; None where too little is left."""
        begin, end = self._taken, self._taken + -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if end > self._size:
            return None
        self._taken = end
        loan = _Loan(self.whole[begin : begin + size_bytes], (size_bytes,))
        weakref.finalize(loan, self._release, begin, end).atexit = False
        return np.asarray(loan)

    def drop(self) -> None:
        """What nobody took."""
        begin, self._taken = self._taken, self._size
        self._release(begin, self._size)

    def _release(self, begin: int, end: int) -> None:
        if begin < end:
            self._memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)


_lock = threading.RLock()  # an array may die while this thread is inside
_reserve: _Reserve | None = None


def reserve(size_bytes: int) -> np.ndarray[Any, Any] | None:
    """Memory, to be fetched, that large arrays are cut from until `drop_reserve`; None where there is no need: elsewhere than in a virtual machine that hands
    memory back a fault costs little."""
    global _reserve
    size = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    if size < LARGE_BYTES or not hands_memory_back():
        return None
    drop_reserve()
    with _lock:
        _reserve = _Reserve(size)
        return _reserve.whole


def drop_reserve() -> None:
    """What nobody took goes back to the system."""
    global _reserve
    with _lock:
        if _reserve is not None:
            _reserve.drop()
        _reserve = None


@functools.cache
def hands_memory_back() -> bool:
    """Whether this is a virtual machine whose balloon reports free pages to the host (VIRTIO_BALLOON_F_REPORTING)."""
    try:
        return any(file.read_text()[REPORTS_FREE_PAGES] == "1" for file in BALLOONS.glob("virtio*/features"))
    except (OSError, IndexError):
        return False


class Fetching:
    """The memory of some arrays, fetched by a thread of its own while others use the arrays; by the caller alone, at the end, where kernels have one thread.

    A fault of a page that another fetches waits for nobody else: since Linux 6.4 a fault holds its own mapping alone, so that the compiler's
    own memory is not waited for.
    """

    def __init__(self, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
        large = [array for array in arrays if array.nbytes >= PAGE_BYTES]
        is_worth_it = sum(array.nbytes for array in large) >= FETCHED_BYTES and native.is_built()
        self._fetch = native.Fetch(large) if is_worth_it else None
        self._thread: threading.Thread | None = None
        if self._fetch is not None and native.get_threads() > 1:
            self._thread = threading.Thread(target=self._fetch.run, daemon=True)
            self._thread.start()
            _AHEAD.add(self)

    @property
    def bytes(self) -> int:
        """That have been fetched, or are being."""
        return self._fetch.bytes if self._fetch is not None else 0

    def finish(self) -> None:
        """Fetches what is left, with the thread."""
        if self._fetch is not None:
            self._fetch.run()
        self.stop()

    def stop(self) -> None:
        """What is left is fetched by whoever writes it first."""
        _AHEAD.discard(self)
        if self._fetch is not None:
            self._fetch.stop()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> "Fetching":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


#: Those that are at work.
_AHEAD: weakref.WeakSet[Fetching] = weakref.WeakSet()


def fetched_ahead() -> int:
    """Bytes that are no longer free and count among what is to come."""
    return sum(fetching.bytes for fetching in list(_AHEAD))


class Reused:
    """Makes float32 arrays and takes large ones back once nothing refers to them. Any thread may call, or let go."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray[Any, Any]]] = {}
        self._lock = threading.RLock()  # an array may die while this thread is inside

    def empty(self, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """An array whose contents are whatever was there."""
        size = math.prod(shape)
        if size * 4 < PAGE_BYTES:
            return empty(shape)
        with self._lock:
            free = self._free.get(size)
            memory = free.pop() if free else None
        if memory is None:
            memory = empty((size,))
        loan = _Loan(memory, shape)
        weakref.finalize(loan, self._give, memory).atexit = False
        return np.asarray(loan)

    def trim(self) -> None:
        """Frees what nothing refers to."""
        with self._lock:
            self._free = {}

    def _give(self, memory: np.ndarray[Any, Any]) -> None:
        with self._lock:
            self._free.setdefault(memory.size, []).append(memory)


class _Loan:
    """What a lent array and every view of it refer to; of two arrays NumPy would let the view refer to the first alone."""

    def __init__(self, memory: np.ndarray[Any, Any], shape: tuple[int, ...]):
        self.__array_interface__ = {**memory.__array_interface__, "shape": shape}
