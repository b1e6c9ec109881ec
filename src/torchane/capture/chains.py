"""Where a block's values come from is written anew once for each block, not once for each value.

    model.layers[0].self_attn.q_proj.weight  ──►  model.layers[3].self_attn.q_proj.weight

Dynamo keeps where a value comes from as a chain of frozen records, and asks for each of a block's values whether what it saw of another block
holds here too. For that it copies every chain from its beginning; chains of one block have most of their records in common.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torchane.capture.torch_private import ChainedSource

Replace = Callable[[Any], Any]

_copy = ChainedSource.clone
_copies: WeakKeyDictionary[Replace, dict[Any, Any]] = WeakKeyDictionary()
_lock = threading.Lock()
_inside = 0


@contextmanager
def copied_once() -> Iterator[None]:
    """Within it, in any thread, a record is copied once for each function that says what replaces it; such functions are pure."""
    _enter(1)
    try:
        yield
    finally:
        _enter(-1)


def _enter(count: int) -> None:
    global _inside
    with _lock:
        _inside += count
        ChainedSource.clone = _clone if _inside else _copy  # type: ignore[method-assign, assignment]


def _clone(source: Any, transform_fn: Replace | None = None) -> Any:
    if transform_fn is None:
        return _copy(source)
    copies = _copies.setdefault(transform_fn, {})
    if source not in copies:
        copies[source] = _copy(source, transform_fn)
    return copies[source]
