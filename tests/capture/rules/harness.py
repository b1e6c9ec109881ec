"""Runs rules against PyTorch in float64: one call, or every node of a traced graph.

`ideal` builds the rule in fp64 and evaluates it unrounded: what the rule means must be what torch means.
`exact` builds it in fp16, as programs are: how far rounding moves it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from functorch.compile import make_boxed_func
from torch._decomp import core_aten_decompositions
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map

from torchane import chips
from torchane.capture import rules
from torchane.capture.rules import common
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Literal, Program, Var
from torchane.mil.kinds import KINDS
from torchane.mil.types import DType
from torchane.passes import has_form

aten = torch.ops.aten
#: torch has no CPU kernel of this gradient; its own decomposition is the oracle.
ORACLES = {name: core_aten_decompositions()[name] for name in (aten._fused_rms_norm_backward.default,)}
_TAKE_MASKED_SCORES = {aten.add.Tensor, aten._softmax.default, aten._safe_softmax.default}
PORTABLE = chips.load("portable")
#: A chip that takes every op, so that rules are tried that no chip is sure to have a use for.
EVERYTHING = replace(PORTABLE, ops={kind: replace(PORTABLE.op("add"), name=kind) for kind in KINDS})

#: torch writes some constants in float32 even for float64 tensors (1 / 6 of hardsigmoid's gradient).
IDEAL = 1e-8
#: A rule is a handful of fp16 roundings of 2**-11 each; sums of cancelling terms lose a few more.
EXACT = 16 * 2.0**-11


def run_rule(
    target: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any] | None = None, *, fp16: bool = False
) -> tuple[np.ndarray | None, ...]:
    """What the rule of `target` computes for torch tensors (bool ones go in as 0 and 1)."""
    b = Builder()
    given: dict[str, np.ndarray] = {}

    def declare(item: Any) -> Any:
        if not isinstance(item, torch.Tensor):
            return item
        array = item.detach().to(torch.float64).numpy()
        if array.size and np.isinf(array.flat[0]) and (array == array.flat[0]).all():  # full(-inf): a constant
            return common.filled(array.shape, array.flat[0], DType.FP16 if fp16 else DType.FP64)
        var = b.input("x", tuple(array.shape), DType.FP16 if fp16 else DType.FP64)
        given[var.name] = array.astype(np.float16) if fp16 else array
        return var

    rule = rules.RULES[target]
    results = rule(b, *tree_map(declare, tuple(args)), **tree_map(declare, kwargs or {}))
    results = results if isinstance(results, tuple | list) else (results,)
    foreign = {op.kind.name for op in b.ops if not has_form(op.kind.name, PORTABLE)}
    assert foreign <= set(rule.needs), f"{target} does not say that it needs {foreign - set(rule.needs)}"
    computed = [item for item in results if isinstance(item, Var)]
    found = evaluate(b.program(*dict.fromkeys(computed)), given, arithmetic="exact" if fp16 else "ideal")
    return tuple(
        None if item is None else np.asarray(item.value) if isinstance(item, Literal) else found[item.name]
        for item in results
    )


def natural_program(target: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Program | None:
    """What the rule of `target` writes, in fp16; None where it computes nothing."""
    b = Builder()

    def declare(item: Any) -> Any:
        if not isinstance(item, torch.Tensor):
            return item
        first = item.flatten()[:1].to(torch.float64)
        if first.isinf().any() and (item == first).all():  # full(-inf): a constant
            return common.filled(tuple(item.shape), first.item(), DType.FP16)
        return b.input("x", tuple(item.shape), DType.FP16)

    results = rules.RULES[target](b, *tree_map(declare, tuple(args)), **tree_map(declare, kwargs))
    given = results if isinstance(results, tuple | list) else (results,)
    computed = dict.fromkeys(item for item in given if isinstance(item, Var) and any(item in op.outputs for op in b.ops))
    return b.program(*computed) if computed else None


def assert_close(found: np.ndarray, wanted: torch.Tensor, tolerance: float, what: str) -> None:
    """Equal shapes; the largest difference at most `tolerance` times the largest wanted magnitude (and 1).
    Entries that torch gives as inf, NaN or finfo.min have no counterpart in programs and are left out."""
    expected = wanted.detach().to(torch.float64).numpy(force=True)  # a gradient of zeros may be torch's ZeroTensor
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, torch gives {expected.shape}"
    finite = np.abs(expected) < 1e30
    if not finite.any():
        return
    scale = max(1.0, float(np.abs(expected[finite]).max()))
    error = float(np.abs(found.astype(np.float64)[finite] - expected[finite]).max())
    assert error <= tolerance * scale, f"{what}: off by {error}, at magnitude {scale}"


def check(target: torch._ops.OpOverload, *args: Any, tolerance: float = EXACT, **kwargs: Any) -> None:
    """The rule of `target` against torch eager in float64, unrounded and in fp16."""
    for fp16 in (False, True):

        def as_given(item: Any, fp16: bool = fp16) -> Any:
            if not isinstance(item, torch.Tensor) or not item.is_floating_point():
                return item
            return (item.half() if fp16 else item).to(torch.float64)

        args_, kwargs_ = tree_map(as_given, args), tree_map(as_given, kwargs)
        wanted = ORACLES.get(target, target)(*args_, **kwargs_)
        compare(target, args_, kwargs_, wanted, tolerance if fp16 else IDEAL, fp16=fp16)


def compare(
    target: torch._ops.OpOverload, args: Any, kwargs: Any, wanted: Any, tolerance: float, *, fp16: bool = False
) -> None:
    """The rule's results against `wanted`, those of torch for the same arguments; None is not compared."""
    several = isinstance(wanted, tuple | list)
    found = run_rule(target, args, kwargs, fp16=fp16)
    for index, (mine, torchs) in enumerate(zip(found, wanted if several else (wanted,), strict=True)):
        if mine is not None and torchs is not None:
            rounding = max(tolerance, 2.0**-11) if mine.dtype == np.float16 else tolerance  # an fp16 constant
            assert_close(mine, torchs, rounding, f"{target} result {index} ({'fp16' if fp16 else 'ideal'})")


class Checker(Interpreter):
    """Runs a graph in float64, and every node that a rule takes also through its rule. The graph was
    traced in float32: where a node names float32, it gets float64."""

    def __init__(self, graph: GraphModule):
        super().__init__(graph)
        self.checked: list[str] = []
        self.declined: dict[str, str] = {}

    def run_node(self, node: Node) -> Any:
        wide = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64)
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return super().run_node(node)
        args, kwargs = tree_map(
            lambda x: wide.get(x, x) if isinstance(x, torch.dtype) else x, self.fetch_args_kwargs_from_env(node)
        )
        if node.target is aten._safe_softmax.default:  # rows masked throughout differ, on purpose
            masked = (args[0] == -torch.inf).all(args[1], keepdim=True)
            args = (args[0].masked_fill(masked, 0.0), *args[1:])
        result = node.target(*args, **kwargs)
        reason = rules.why_not(node, EVERYTHING)
        if reason is None and _has_odd_numbers(node.target, (args, kwargs)):
            reason = "its inputs are not finite"
        if reason is None:
            compare(node.target, args, kwargs, result, IDEAL)
            self.checked.append(str(node.target))
        else:
            self.declined[str(node.target)] = reason
        return result


def _has_odd_numbers(target: torch._ops.OpOverload, given: Any) -> bool:
    """inf or NaN among the entries of a tensor, which programs do not hold. A tensor that is -inf throughout
    is a constant; scores that are -inf where masked reach a sum and a softmax unharmed."""
    floats = [x for x in tree_flatten(given)[0] if isinstance(x, torch.Tensor) and x.is_floating_point()]
    if target in _TAKE_MASKED_SCORES:
        return any((x.isnan() | (x == torch.inf)).any() for x in floats)
    return any(not x.isfinite().all() and not (x == -torch.inf).all() for x in floats)


def trace(function: Callable[..., Any], *inputs: torch.Tensor) -> GraphModule:
    """The ATen graph of `function` after our decompositions; autograd inside it is traced too."""
    return make_fx(function, decomposition_table=rules.decompositions(), tracing_mode="fake")(*inputs)


def check_graph(graph: GraphModule, *inputs: torch.Tensor) -> Checker:
    checker = Checker(graph)
    checker.run(*(x.double() if x.is_floating_point() else x for x in inputs))
    return checker


def check_function(function: Callable[..., Any], *inputs: torch.Tensor, grad: bool = True) -> Checker:
    """Forward of `function` and, where its result depends on a float input, its gradient in those: each node
    against its rule, and what the graph gives against eager in float64, so that decompositions are judged too."""

    def whole(*xs: torch.Tensor) -> Any:
        outputs = [y for y in tree_flatten(function(*xs))[0] if isinstance(y, torch.Tensor)]
        with_grad = [y for y in outputs if y.requires_grad]
        wanted = [x for x in xs if x.requires_grad]
        if not grad or not with_grad:
            return outputs
        grads = torch.autograd.grad(with_grad, wanted, [torch.full_like(y, 0.5) for y in with_grad], allow_unused=True)
        return outputs, grads

    leaves = [x.detach().requires_grad_(grad and x.is_floating_point()) for x in inputs]
    checker = Checker(trace(whole, *leaves))
    wide = [x.detach().double() if x.is_floating_point() else x for x in leaves]
    found = tree_flatten(checker.run(*wide))[0]
    wanted = tree_flatten(whole(*(x.requires_grad_(grad) if x.is_floating_point() else x for x in wide)))[0]
    for index, (mine, eager) in enumerate(zip(found, wanted, strict=True)):
        assert (mine is None) == (eager is None), f"result {index}: {mine}, eager gives {eager}"
        if eager is not None:
            assert_close(mine.detach().numpy(force=True), eager, IDEAL, f"result {index} of the traced graph")
    return checker


def check_model(model: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[set[str], dict[str, str]]:
    """Compiles and trains `model` once (its result is the loss), every node of its forward and backward
    graphs through its rule. Returns the ops that were checked, and those declined with the reason."""
    checked: set[str] = set()
    declined: dict[str, str] = {}

    def compiler(graph: GraphModule, _: Any) -> Callable[..., Any]:
        def run(*inputs: Any) -> list[Any]:
            checker = Checker(graph)
            wide = (x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)
            outputs = checker.run(*wide)
            checked.update(checker.checked)
            declined.update(checker.declined)
            nodes = next(node for node in graph.graph.nodes if node.op == "output").args[0]
            return [y if node is None else y.to(node.meta["val"].dtype) for y, node in zip(outputs, nodes)]

        return make_boxed_func(run)

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler, decompositions=rules.decompositions())
    torch._dynamo.reset()
    with sdpa_kernel(SDPBackend.MATH):
        torch.compile(model, backend=backend)(*args, **kwargs).backward()
    return checked, declined
