"""A forward or backward whose numbers fp16 cannot hold, computed by PyTorch instead.

    forward's programs ──► NotInFp16: the input x holds NaN ──► the captured graph, on the host, in float32
    backward ──► it was given float32, or overflows at every loss scale ──► its graph, on the host, in float32
    either ──► a result is 0 or below 2^-20 throughout, and not in float32 (faint.py) ──► likewise
Programs join and cut rows by products with constant zeros and ones, and 0 x NaN is NaN, so an infinity in one sample spoils others. Whoever
compiles a model may rely on what eager gives, for the samples that are sound above all. So such a forward is run once more as
PyTorch would run it; it is said, since it costs the time that programs were to save. What such a forward saves for its backward is float32, and no surface:
that is how the backward knows.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx

from torchane.capture.faint import Doubts, only_added, zeros_of
from torchane.capture.host import largest_of
from torchane.capture.host_graph import laid_out, read_as_traced
from torchane.capture.policies.homogeneous import packet_of
from torchane.capture.tangents import ByMagnitude
from torchane.capture.torch_private import HigherOrderOperator
from torchane.errors import NumericsError
from torchane.plan import Plan
from torchane.runtime.execute import Executor
from torchane.runtime.fp16_range import NotInFp16

aten = torch.ops.aten

_INSTEAD = "PyTorch computes {what} in float32 wherever that is so."
_SCALE = " Scale inputs or weights {way} to have programs compute it."

_OR_RANGES = ' options={"ranges": "on"} gives every tensor a scale of its own.'

_FAR_APART = (
    "Incoming gradients differ by more than 2^20 in size, so that no one loss scale holds them, and this backward has ops that are not "
    "proportional to them, so that they cannot go through it one after the other."
)

_COMES_FROM = "Lower the learning rate, clip gradients, look for a loss or a layer that makes infinities, or resume from an earlier checkpoint."

#: A sum that is so much smaller than what it adds up is nothing but roundings of that, which saved values have at 2^-11: the gradient of a
#: key's bias, which no softmax sees.
_CANCELS = 2.0**-9

#: The first forwards look at what they save, which costs a reading of it: what overflows there is nearly always there from the start.
_LOOKS = 2


def is_repeatable(gm: fx.GraphModule) -> bool:
    """A second run of a graph writes nothing twice."""
    return not any(_writes(node) for node in gm.graph.nodes if node.op == "call_function")


class OrFloat32:
    """Runs a forward's programs, or its graph where these meet what they cannot compute."""

    def __init__(self, execute: Executor, gm: fx.GraphModule):
        self.execute = execute
        self.graph = _OnHost(gm, execute)
        self.is_repeatable = is_repeatable(gm)
        execute.only_added = only_added(gm.graph)
        self.draws = any(_draws(node) for node in gm.graph.nodes if node.op == "call_function")
        self.looks = _LOOKS
        self.doubts = Doubts()

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        if not self.is_repeatable:  # a second run would write twice
            return self.execute(args)[0]
        state = torch.get_rng_state() if self.draws else None
        looks, self.looks = self.looks, max(0, self.looks - 1)
        self.doubts.begin()
        while True:
            try:
                return self.execute(args, strict=True, looks=looks > 0, doubts=self.doubts.is_due)[0]
            except NotInFp16 as found:
                if state is not None:
                    torch.set_rng_state(state)  # the random numbers of the first try
                right = self._right(args, found)
                if right is not None:
                    self.looks = 1  # as long as it goes on
                    return right
                if state is not None:
                    torch.set_rng_state(state)

    def _right(self, args: Sequence[Any], found: NotInFp16) -> list[Any] | None:
        """The results in float32; None where programs gave zeros, and they are right."""
        plan = self.execute.plan
        names = self.execute.unstaged | plan.kept_names if found.is_zero else frozenset()
        proven = zeros_of(self.graph.gm.graph, _parameters(plan, args)) if found.is_zero else frozenset()
        if found.value in proven:
            self.doubts.confirm(proven & names)
            return None
        right, largest = self.graph.watched(args, names)
        if found.is_zero and not largest[found.value]:
            self.doubts.confirm(name for name, size in largest.items() if not size)
            return None
        what = "the forward, and its backward," if plan.kept else "the forward"
        self.execute.say(found, _INSTEAD.format(what=what) + _SCALE.format(way="up" if found.is_small else "down"))
        return [_saved(value) if position in plan.kept else value for position, value in enumerate(right)]


class BackwardOrFloat32:
    """Runs a backward's programs, or its graph where its forward was float32's, where no loss scale helps, or where incoming
    gradients are too far apart for one and cannot be taken apart (`is_proportional`)."""

    def __init__(self, execute: Executor, gm: fx.GraphModule, apart: ByMagnitude, is_proportional: bool):
        self.execute = execute
        self.graph = _OnHost(gm, execute)
        self.apart = apart
        self.is_proportional = is_proportional
        execute.only_added = only_added(gm.graph)
        self.is_repeatable = is_repeatable(gm)
        self.doubts = Doubts()

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        if self._is_of_float32(args):
            return self.graph(args)
        parts = self.apart.parts(args)
        try:
            if len(parts) == 1 or not self.is_repeatable:
                found = self.apart([args])
                return self._with_digits(args, found) if self.is_repeatable else found
            if self.is_proportional:
                with self.execute.weights.gradients.wanted(False):  # they are added up
                    return self.apart(parts)
            raise NumericsError(_FAR_APART)
        except (NumericsError, NotInFp16) as error:
            if not self.is_repeatable:
                raise
            return self._repeated(args, error)

    def _is_of_float32(self, args: Sequence[Any]) -> bool:
        plan = self.execute.plan
        return any(arg.dtype != torch.float16 for name, arg in zip(plan.inputs, args, strict=True) if name in plan.surfaces_in)

    def _with_digits(self, args: Sequence[Any], results: list[Any]) -> list[Any]:
        """The results, or float32's where some that are 0 or below 2^-20 throughout are not so there."""
        if not self.execute.minds_losses:
            return results
        self.doubts.begin()
        faint = [name for name in self.execute.numerics.loss_scale.faint if self.doubts.is_due(name) and self.execute.unstages_whole(name)]
        if not faint:
            return results
        proven = zeros_of(self.graph.gm.graph, _parameters(self.execute.plan, args))
        left = [name for name in faint if name not in proven]
        right, largest = self.graph.watched(self.execute.logical(args), left) if left else ([], {})
        lost = [name for name in left if largest[name]]
        self.doubts.confirm(name for name in faint if name not in lost)
        if not lost or any(map(_is_not_finite, right)):
            return results
        text = (
            f"The gradient {self.execute.named(lost[0])} is {largest[lost[0]]:.2g} at most, too far below the incoming one "
            "for one loss scale, and has few digits in programs or none"
        )
        self.execute.say(NotInFp16("the backward", text), _INSTEAD.format(what="the backward") + _OR_RANGES)
        return right

    def _repeated(self, args: Sequence[Any], error: NumericsError | NotInFp16) -> list[Any]:
        """The results in float32. Raises NumericsError where they are not finite either, and says where that comes from."""
        given = self.execute.logical(args)
        bad = [name for name, value in zip(self.execute.plan.inputs, given, strict=True) if _is_not_finite(value)]
        if bad:
            named = ", ".join(self.execute.named(name) for name in bad[:3])
            raise NumericsError(f"{error} It was given infinities or NaN: {named}. {_COMES_FROM}") from None
        right = self.graph(given)
        if any(map(_is_not_finite, right)):
            raise NumericsError(f"{error} In float32 its results are infinite or NaN, too. {_COMES_FROM}") from None
        way = "up" if isinstance(error, NotInFp16) and error.is_small else "down"
        self.execute.say(NotInFp16("the backward", str(error).rstrip(".")), _INSTEAD.format(what="the backward") + _SCALE.format(way=way))
        return right


class _OnHost:
    """A captured graph, run by PyTorch."""

    def __init__(self, gm: fx.GraphModule, execute: Executor):
        self.gm = gm
        self.execute = execute
        self.values = [node.meta.get("val") for node in gm.graph.find_nodes(op="placeholder")]
        self.made: fx.GraphModule | None = None

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        with torch.no_grad():
            return list(self._module()(*self._promised(args)))

    def watched(self, args: Sequence[Any], names: Collection[str]) -> tuple[list[Any], dict[str, float]]:
        """The results, and the largest magnitude of the values of these names on the way; 0 for sums that are nothing but roundings."""
        if not names:
            return self(args), {}
        run = _Watching(self._module(), names)
        with torch.no_grad():
            return list(run.run(*self._promised(args))), run.largest

    def _module(self) -> fx.GraphModule:
        """Made when it is first wanted, which it mostly is not."""
        if self.made is None:
            graph = fx.Graph()
            graph.output(graph.graph_copy(self.gm.graph, {}))
            read_as_traced(graph)
            self.made = fx.GraphModule(self.gm, graph)
        return self.made

    def _promised(self, args: Sequence[Any]) -> list[Any]:
        seen = map(self.execute.seen, self.execute.plan.inputs, args)
        return [_as_promised(arg, value) for arg, value in zip(seen, self.values, strict=True)]


class _Watching(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, names: Collection[str]):
        super().__init__(gm)
        self.names = names
        self.largest: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.largest[n.name] = 0.0 if self._cancels(n, value) else largest_of(value)
        return value

    def _cancels(self, n: fx.Node, value: torch.Tensor) -> bool:
        if packet_of(n) not in (aten.sum, aten.mm, aten.bmm):
            return False
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        terms = n.target(*(arg.abs() if isinstance(arg, torch.Tensor) else arg for arg in args), **kwargs)  # type: ignore[operator]
        return bool((value.abs() < _CANCELS * terms).all())


def _parameters(plan: Plan, args: Sequence[Any]) -> dict[str, Any]:
    """The inputs that did not come out of fp16."""
    return {name: arg for name, arg in zip(plan.inputs, args, strict=True) if name not in plan.surfaces_in}


def _as_promised(arg: Any, value: Any) -> Any:
    """In the dtype and the strides that the graph was traced with; what was saved in float32 or in a surface has others."""
    if not isinstance(arg, torch.Tensor) or not isinstance(value, torch.Tensor):
        return arg
    strides = value.stride()
    return laid_out(arg.to(value.dtype), strides) if all(isinstance(stride, int) for stride in strides) else arg.to(value.dtype)


def _saved(value: Any) -> Any:
    """Never fp16, as surfaces are."""
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.float16 else value


def _is_not_finite(value: Any) -> bool:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return is_float and not bool(torch.isfinite(value).all())


def _writes(node: fx.Node) -> bool:
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def _draws(node: fx.Node) -> bool:
    is_seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return is_seeded or isinstance(node.target, HigherOrderOperator)
