"""What tests of padding share: a module's padded graph, run by PyTorch in float64 and held against the exact one, value by value."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from torchane.capture.sizes.axes import State, Value
from torchane.capture.sizes.buckets import Buckets
from torchane.capture.sizes.served import Served

BAR = 1e-9  # float64, sums in another order


def captured(function: Callable[..., Any], *args: Any, dynamic: Sequence[tuple[int, int]] = ((0, 1),)) -> tuple[fx.GraphModule, tuple[Any, ...]]:
    """Dynamo's graph with symbols, and what it is called with. dynamic: (argument, axis) that vary."""
    found: list[tuple[fx.GraphModule, tuple[Any, ...]]] = []

    def keep(gm: fx.GraphModule, _: Any) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            found.append((gm, given))
            return gm(*given)

        return call

    torch._dynamo.reset()
    for argument, axis in dynamic:
        torch._dynamo.mark_dynamic(args[argument], axis)
    torch.compile(function, backend=keep, fullgraph=True)(*args)
    return found[-1]


def served(function: Callable[..., Any], *args: Any, dynamic: Sequence[tuple[int, int]] = ((0, 1),), buckets: Any = "auto") -> Any:
    """The bucket of a call, its true sizes, Dynamo's graph and its inputs; why not, where there is none."""
    gm, given = captured(function, *args, dynamic=dynamic)
    made = Served(gm, Buckets.parse(buckets))
    found = made.bucket(given)
    return made.reason if found is None else (*found, gm, given)


def check(
    function: Callable[..., Any], *args: Any, dynamic: Sequence[tuple[int, int]] = ((0, 1),), buckets: Any = "auto", looks_inside: bool = True
) -> None:
    """Results and gradients are the exact graph's. looks_inside: so is every value on the way; rows beyond hold what is claimed of them."""
    found = served(function, *args, dynamic=dynamic, buckets=buckets)
    assert not isinstance(found, str), found
    bucket, true, gm, given = found
    state = torch.get_rng_state()
    exact = _run(lambda: gm(*given), given)
    torch.set_rng_state(state)
    padded = _run(lambda: bucket.results(bucket.module(*bucket.given(given, true)), given, true), given)
    for ours, theirs in zip(padded, exact, strict=True):
        _compare(ours, theirs)
    if looks_inside:
        _check_values(bucket, true, given, state)


def _run(call: Callable[[], Any], given: Sequence[Any]) -> list[Any]:
    """Results, and the gradients of what wants them, of a sum with weights that differ."""
    leaves = [one for one in given if isinstance(one, torch.Tensor) and one.requires_grad]
    results = [one for one in call() if one is not None]
    floats = [one for one in results if isinstance(one, torch.Tensor) and one.requires_grad]
    if not leaves or not floats:
        return results
    loss = sum((one * torch.linspace(1, 2, one.numel(), dtype=one.dtype).reshape(one.shape)).sum() for one in floats)
    return [*results, *torch.autograd.grad(loss, leaves, allow_unused=True)]


def _compare(ours: Any, theirs: Any) -> None:
    if not isinstance(theirs, torch.Tensor):
        assert ours == theirs or (theirs is None and not ours.any()) or (ours is None and theirs is None)
    elif ours is None:
        assert not theirs.any()
    else:
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=BAR, atol=BAR, equal_nan=True)


class _Kept(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, node: fx.Node) -> Any:
        self.values[node] = super().run_node(node)
        return self.values[node]


def _check_values(bucket: Any, true: Any, given: Sequence[Any], state: torch.Tensor) -> None:
    traced = next(iter(bucket.padded.values)).graph.owning_module
    exact, padded = _Kept(traced), _Kept(bucket.module)
    with torch.no_grad():
        torch.set_rng_state(state)
        exact.run(*given)
        torch.set_rng_state(state)
        padded.run(*bucket.given(given, true))
    for node, value in bucket.padded.values.items():
        if isinstance(value, Value) and node in exact.values and isinstance(exact.values[node], torch.Tensor) and not _is_order(node):
            _check_value(node, value, padded.values[value.node], exact.values[node], true, bucket.sizes)


def _is_order(node: fx.Node) -> bool:
    """The places of a sort, on the way: equal numbers have no order of their own, and a rounding may make one."""
    source = node.args[0] if node.args else None
    return node.target is operator.getitem and isinstance(source, fx.Node) and getattr(source.target, "overloadpacket", None) is torch.ops.aten.sort and node.args[1] == 1


def _check_value(node: fx.Node, value: Value, padded: torch.Tensor, exact: torch.Tensor, true: Any, sizes: Any) -> None:
    factors = [factor for axis in value.axes for factor in axis]
    size = lambda factor, sizes: factor.size if not factor.is_padded else int(factor.size.xreplace(sizes))
    wide = padded.reshape([size(factor, dict(sizes)) for factor in factors])
    cut = wide
    for position, factor in enumerate(factors):
        if factor.is_padded:
            cut = cut.narrow(position, 0, size(factor, dict(true)))
    _compare(cut.reshape(exact.shape), exact)
    for position, factor in enumerate(factors):
        if not factor.is_padded:
            continue
        count = size(factor, dict(true))
        beyond = _true_along_others(wide, factors, position, true).narrow(position, count, wide.shape[position] - count)
        last = _true_along_others(wide, factors, position, true).narrow(position, count - 1, 1)
        if factor.state is State.ZERO and bool(exact.isfinite().all()):
            assert not beyond.any(), f"{node.name} is to be zero"
        elif factor.state is State.EDGE:
            torch.testing.assert_close(beyond, last.expand_as(beyond), rtol=BAR, atol=BAR, equal_nan=True, msg=lambda text: f"{node.name}: {text}")
        elif padded.is_floating_point() and bool(exact.isfinite().all()):
            assert beyond.isfinite().all(), f"{node.name} is to be finite"


def _true_along_others(wide: torch.Tensor, factors: Sequence[Any], position: int, true: Any) -> torch.Tensor:
    """The true rows along every other axis."""
    for other, factor in enumerate(factors):
        if other != position and factor.is_padded:
            wide = wide.narrow(other, 0, int(factor.size.xreplace(dict(true))))
    return wide
