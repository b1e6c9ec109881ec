"""What a caller promises while it calls a compiled graph: its inputs are written by PyTorch's own ops alone, each of which is counted in the tensor's version.

    with only_torch_writes():            # one text, whose weights and cache are in its own hands
        model.generate(...)
    with only_torch_writes(held): ...    # generate/pretrained.py: what holds all the while; also between two texts

Without it a frozen weight's bytes are read in every call, and all of a cache is staged, since writes through `.data` or NumPy leave no
trace. Within it a weight of the same memory and version is the one that the call before saw, and of a cache the rows that a call has
written are staged. The promise is a thread's own, and nothing that was learned under one is believed under another.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_promise: ContextVar[object | None] = ContextVar("promise", default=None)


@contextmanager
def only_torch_writes(held: object | None = None) -> Iterator[None]:
    """Within it the promise holds. held: an object of the caller's, where it has held since it was first given."""
    before = _promise.set(object() if held is None else held)
    try:
        yield
    finally:
        _promise.reset(before)


def promise() -> object | None:
    """What identifies the promise that holds now; None where there is none."""
    return _promise.get()
