"""A forward whose numbers fp16 cannot hold, computed by PyTorch instead.

    programs ──► NotInFp16: the input x holds NaN ──► the captured graph, on the host, in float32
Programs join and cut rows by products with constant zeros and ones, and 0 x NaN is NaN, so an infinity in one sample spoils others. Whoever
compiles a model may rely on what eager gives, for the samples that are sound above all. So such a forward is run once more as
PyTorch would run it; it is said, since it costs the time that programs were to save.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from torchane.capture.torch_private import HigherOrderOperator
from torchane.runtime.execute import Executor, NotInFp16

_INSTEAD = "PyTorch computes the forward in float32 wherever that is so. Scale inputs or weights down to have programs compute it."
_ITS_BACKWARD = "PyTorch computes the results in float32; what a backward reads is the programs', with infinities in it."


class OrFloat32:
    """Runs a forward's programs, or its graph where these meet what they cannot compute."""

    def __init__(self, execute: Executor, gm: fx.GraphModule, results: int):
        self.execute = execute
        self.gm = gm
        self.results = results  # the caller's; behind them comes what is saved for the backward
        nodes = [node for node in gm.graph.nodes if node.op == "call_function"]
        self.is_repeatable = not any(_writes(node) for node in nodes)
        self.draws = any(_draws(node) for node in nodes)
        self.call: Callable[..., Sequence[Any]] | None = None

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        if not self.is_repeatable:  # a second run would write twice
            return self.execute(args)[0]
        state = torch.get_rng_state() if self.draws else None
        try:
            return self.execute(args, strict=True)[0]
        except NotInFp16 as found:
            is_kept = bool(self.execute.plan.kept)
            self.execute.say(found, _ITS_BACKWARD if is_kept else _INSTEAD)
            right = list(self._again(state, lambda: self._in_float32(args)))
            if not is_kept:
                return right  # what is saved for the backward lies on the host, too
            return [*right[: self.results], *self._again(state, lambda: self.execute(args)[0][self.results :])]

    def _again(self, state: torch.Tensor | None, run: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        """With the random numbers of the first try."""
        if state is not None:
            torch.set_rng_state(state)
        return run()

    def _in_float32(self, args: Sequence[Any]) -> Sequence[Any]:
        if self.call is None:
            self.call = fx.GraphModule(self.gm, self.gm.graph)
        with torch.no_grad():
            return self.call(*args)


def _writes(node: fx.Node) -> bool:
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def _draws(node: fx.Node) -> bool:
    is_seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return is_seeded or isinstance(node.target, HigherOrderOperator)
