"""Compiled graphs that are there at once: those used longest ago leave, and are compiled again when they are called.

    call ──► Resident ──► its graph           used just now: last to leave
                 │
                 └─► more than MOST_GRAPHS, or more bytes than a share of memory ──► the graph used longest ago is let go

A run with any number of sizes goes on: it pays with time, not with an error. What a device may hold loaded at once is the device's
own limit (runtime/ane/device.py). A backward that is still to come keeps what it needs alive by itself.
"""

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from torchane.capture.torch_private import FakeTensorMode, TracingContext, tracing
from torchane.plan import Plan
from torchane.plan.memory import constants_of

#: Graphs whose programs are there at once.
MOST_GRAPHS = 128
#: For the text and the weights of their programs: an eighth of this machine's memory.
ROOM_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8

Call = Callable[..., Any]


class HasPlans(Protocol):
    plans: dict[str, Plan]


class Resident:
    """One compiled graph that may be let go. compile(args) gives what computes it, and where its plans are."""

    def __init__(self, compile: Callable[[Sequence[Any]], tuple[Call, HasPlans]]):
        self._compile = compile
        self._call: Call | None = None
        self._compiled: HasPlans | None = None
        self._sizes: dict[str, int] = {}

    def ready(self, args: Sequence[Any]) -> "Resident":
        """Compiles it now, in the tracing context of the caller."""
        self._call, self._compiled = self._compile(args)
        return self

    def ensure(self, args: Sequence[Any]) -> "Resident":
        """Compiles it, in a tracing context of its own, unless it is there."""
        if self._call is None:
            with tracing(TracingContext(FakeTensorMode())):
                self.ready([_as_leaf(arg) for arg in args])
        return self

    def __call__(self, *args: Any) -> Any:
        self.ensure(args)
        call = self._call
        assert call is not None
        PRESENT.use(self)
        return call(*args)

    @property
    def is_present(self) -> bool:
        return self._call is not None

    @property
    def size_bytes(self) -> int:
        """Of its programs; those of the backward are there from the first backward on."""
        for name, plan in self._compiled.plans.items() if self._compiled is not None else ():
            if name not in self._sizes:
                self._sizes[name] = constants_of(plan) + sum(len(spec.text) + sum(map(len, spec.blobs.values())) for spec in plan.programs)
        return sum(self._sizes.values())

    def let_go(self) -> None:
        self._call = self._compiled = None
        self._sizes = {}


def _as_leaf(arg: Any) -> Any:
    """torch looks at the gradient of what it traces, and warns where that is no leaf: an input that was filled up."""
    if isinstance(arg, torch.Tensor) and arg.requires_grad and not arg.is_leaf:
        return arg.detach().requires_grad_()
    return arg


class Present:
    """Graphs in the order of their last use. Any thread may use one."""

    def __init__(self) -> None:
        self._used: list[weakref.ref[Resident]] = []
        self._lock = threading.Lock()

    def use(self, graph: Resident) -> None:
        with self._lock:
            if self._used and self._used[-1]() is graph:
                return
            there = [other for reference in self._used if (other := reference()) is not None and other is not graph and other.is_present]
            there.append(graph)
            sizes = [one.size_bytes for one in there]
            total = sum(sizes)
            while len(there) > 1 and (len(there) > MOST_GRAPHS or total > ROOM_BYTES):
                total -= sizes.pop(0)
                there.pop(0).let_go()
            self._used = [weakref.ref(one) for one in there]


PRESENT = Present()
