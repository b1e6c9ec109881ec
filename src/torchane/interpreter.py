"""What long imports and long compilations ask of Python's interpreter."""

import gc
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: Words that the frame of `_call` asks for: just over 128 KiB, so that CPython fetches 256 KiB for it and the other half is for what it calls.
_WORDS = 17_000


def compiling(function: Callable[P, T]) -> Callable[P, T]:
    """Runs it without garbage collection, and with room for the frames of what it calls.

    - Graphs of many thousand nodes all stay alive: to walk through them again and again takes a quarter of the time.
    - CPython (3.11 and later, `push_chunk` in Python/pystate.c) keeps frames in chunks of 16 KiB, fetched from the system when a call
      does not fit and given back when it returns. A loop whose calls fall on the edge of a chunk fetches memory in each of them: with
      `tiny`, 88,000 page faults. Where the edge lies depends on how deep the user's code calls; in a chunk of 256 KiB it is far away.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with _without_collection():
            return _call(function, args, kwargs)

    return run


@contextmanager
def importing(*, owned: bool) -> Iterator[None]:
    """Without garbage collection: the half a million objects that come with torch stay alive.

    owned: the process is the command line's, so that later collections may leave out all that is there by then (`gc.freeze`). Both
    together save a fifth of the processor time of a first step with `tiny`, imports included.
    """
    known = len(sys.modules)
    with _without_collection():
        yield
    if owned and len(sys.modules) > known:
        gc.freeze()


@contextmanager
def _without_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _plain_call(function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    return function(*args, **kwargs)


_call = types.FunctionType(_plain_call.__code__.replace(co_stacksize=_WORDS), globals(), "_call")
