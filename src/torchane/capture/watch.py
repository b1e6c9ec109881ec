"""Says what torch.compile leaves to eager PyTorch before a backend sees it.

    Dynamo traces a frame ──► graph break, or gives the frame up ──► eager, with a log line that nobody reads
Dynamo counts its breaks. Its compile callbacks tell when a frame begins and ends; what was counted in
between, for a frame of ours, becomes a TorchaneWarning with the user's line. `torch.compile(DDP(model))`
is told apart: Dynamo leaves out the wrapper's own forward, and of what it wraps the forwards that are torch's own. Callbacks know no backend, so the compiling frame is
looked up on the stack; torch is pinned. `module.compile()` of such a forward begins no frame, so nothing would tell: that method is watched itself.
"""

import functools
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchane.capture.sources import is_users
from torchane.capture.torch_private import (
    CallbackArgs,
    callback_handler,
    counters,
    disable,
    external_utils,
    graph_break_reasons,
)
from torchane.errors import TorchaneWarning

_COUNTED = ("graph_break", "unimplemented")

DDP_ADVICE = (
    'torch.compile(DistributedDataParallel(model), backend="ane") leaves out the wrapper, and {what}. '
    "Turn them round: DistributedDataParallel(torch.compile(model, backend=\"ane\"))."
)


IN_PLACE_ADVICE = (
    '{kind}.compile(backend="ane") compiles {what}: torch leaves out a forward that is its own, as {owner}\'s is, and says nothing. '
    'Use torch.compile(module, backend="ane"), which takes it.'
)


class Watch:
    """Reports frames whose innermost backend is `backend`, from now on."""

    def __init__(self, backend: Callable[..., Any]):
        self._backend = backend
        self._before: dict[str, Counter[str]] = {}
        self._reasons = 0
        # A backward inside a compiled function calls back with Dynamo on, and with torch's lock held: a callback that Dynamo
        # compiles in turn waits for that lock for ever.
        start, end = disable(self._start), disable(self._end)
        callback_handler.start_callbacks = _Lasting(callback_handler.start_callbacks, start)
        callback_handler.end_callbacks = _Lasting(callback_handler.end_callbacks, end)
        self._watch_compile_in_place()

    def _watch_compile_in_place(self) -> None:
        """nn.Module.compile as it was, and a warning where it does nothing. This module may be imported by the first such call itself."""
        in_place = nn.Module.compile
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code is in_place.__code__:
                self._say_what_is_left_out(frame.f_locals["self"])
            frame = frame.f_back

        @functools.wraps(in_place)
        def watched(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            in_place(module, *args, **kwargs)
            if kwargs.get("backend") in ("ane", self._backend):
                self._say_what_is_left_out(module)

        nn.Module.compile = watched  # type: ignore[method-assign]

    @staticmethod
    def _say_what_is_left_out(module: nn.Module) -> None:
        frames = _frames(module)
        if frames != [module]:
            owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
            what = "nothing" if not frames else ", ".join(dict.fromkeys(type(one).__name__ for one in frames)) + " in it alone, each by itself"
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            warnings.warn(IN_PLACE_ADVICE.format(kind=kind, what=what, owner=f"nn.{owner.__name__}"), TorchaneWarning, stacklevel=3)

    def _start(self, _: CallbackArgs) -> None:
        self._before = {kind: Counter(counters[kind]) for kind in _COUNTED}
        self._reasons = len(graph_break_reasons)

    def _end(self, _: CallbackArgs) -> None:
        compiling = compiling_frame()
        if compiling is None or compiling.f_locals.get("one_graph"):
            return  # fullgraph=True: torch raises what it found
        if _innermost(compiling.f_locals["compiler_fn"]) is not self._backend:
            return
        values = compiling.f_locals["frame"].f_locals.values()
        wrapper = next((value for value in values if isinstance(value, DistributedDataParallel)), None)
        if wrapper is not None:
            left_out = _left_out(wrapper.module)
            return None if left_out is None else _say(DDP_ADVICE.format(what=left_out))
        code = compiling.f_locals["code"]
        found = [reason for kind in _COUNTED for reason in counters[kind] - self._before.get(kind, Counter())]
        whole = compiling.f_locals["frame"].f_locals.get("fn") if code.co_filename == external_utils.__file__ else None
        if found and (is_users(code.co_filename) or isinstance(whole, nn.Module)):  # a module of torch's own, compiled by itself
            place = f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"
            where = place if whole is None else f"{type(whole).__module__}.{type(whole).__name__}"
            line = self._line() if whole is None else ""  # torch's own line says nothing to its user
            _say("\n".join(_text(where, reason, line) for reason in dict.fromkeys(found)))

    def _line(self) -> str:
        new = graph_break_reasons[self._reasons :]
        if not new or not new[-1].user_stack:
            return ""
        last = next((f for f in reversed(new[-1].user_stack) if is_users(f.filename)), new[-1].user_stack[-1])
        return f" at {last.filename}:{last.lineno}, `{last.line}`"


class _Lasting(list[Callable[[CallbackArgs], None]]):
    """Callbacks of which one outlives torch._dynamo.reset(), which clears the list."""

    def __init__(self, callbacks: list[Callable[[CallbackArgs], None]], lasting: Callable[[CallbackArgs], None]):
        super().__init__([*callbacks, lasting])
        self._lasting = lasting

    def clear(self) -> None:
        super().clear()
        self.append(self._lasting)


def _left_out(module: nn.Module) -> str | None:
    """What of a module in DDP gets no graph of its own, since its forward is torch's; None where all of it is one graph."""
    frames = _frames(module)
    if frames == [module]:
        return None
    kind = f"the module that it wraps is an nn.{type(module).__name__}, whose forward torch.compile leaves out too: "
    if not frames:
        return f"{kind}the whole model runs in PyTorch"
    names = ", ".join(dict.fromkeys(type(frame).__name__ for frame in frames))
    return f"{kind}{names} in it become graphs of their own, and the rest runs in PyTorch"


def _frames(module: nn.Module) -> list[nn.Module]:
    """The outermost modules whose forward is not torch's own: Dynamo begins a graph at each."""
    code = getattr(type(module).forward, "__code__", None)
    if code is not None and is_users(code.co_filename):
        return [module]
    return [frame for child in module.children() for frame in _frames(child)]


def _text(where: str, reason: str, line: str) -> str:
    lines = [part.strip() for part in reason.splitlines() if part.strip()]
    kept = [part for part in lines[:2] if not part.startswith("Developer")]
    return (
        f"torch.compile cannot trace all of {where}{line}: {' '.join(kept)} What it cannot trace runs in PyTorch, and "
        "the rest is cut into separate graphs there. Take it out of the compiled module, or pass fullgraph=True to "
        "make it an error."
    )


def _say(text: str) -> None:
    try:
        warnings.warn(text, TorchaneWarning, stacklevel=2)
    except TorchaneWarning:  # an error by the user's filter: leave torch's count of running compilations right
        callback_handler._CompilationCallbackHandler__pending_callbacks_counter -= 1  # type: ignore[attr-defined]
        raise


def compiling_frame() -> FrameType | None:
    """Dynamo's own frame that compiles, whose locals have the user's `frame`; None where nothing is being compiled."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not (frame.f_code.co_name == "_compile" and "compiler_fn" in frame.f_locals):
        frame = frame.f_back
    return frame


def _innermost(backend: Any) -> Any:
    """What torch, its debug wrapper or its DDP optimizer wrapped."""
    while True:
        owner = getattr(backend, "__self__", backend)
        inner = next(
            (
                getattr(owner, name)
                for name in ("_torchdynamo_orig_backend", "backend_compile_fn", "_compiler_fn", "compiler_fn", "__wrapped__")
                if getattr(owner, name, None) is not None
            ),
            None,
        )
        if inner is None:
            return backend
        backend = inner
