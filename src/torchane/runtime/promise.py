"""A caller's promise: for a while, tensors change by PyTorch's own ops alone, each of which is counted in the tensor's version.

    with only_torch_writes():       # generate/pretrained.py: one text, whose weights and cache are in its own hands
        model.generate(...)

Without it a frozen weight's bytes are read in every call, and all of a cache is staged, since writes through `.data` or NumPy leave no
trace. Within it a weight of the same memory and version is the one that the call before saw, and of a cache the rows that a call has
written are staged. The promise is a thread's own, and nothing that was learned under one is believed under the next.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_promise: ContextVar[object | None] = ContextVar("promise", default=None)


@contextmanager
def only_torch_writes() -> Iterator[None]:
    """Within it the promise holds."""
    before = _promise.set(object())
    try:
        yield
    finally:
        _promise.reset(before)


def promise() -> object | None:
    """What identifies the promise that holds now; None where there is none."""
    return _promise.get()
