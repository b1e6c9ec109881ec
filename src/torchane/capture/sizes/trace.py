"""Dynamo's graph with symbolic sizes as ATen ops, forward only and without writes: what the analysis of padding reads.

    Dynamo graph (torch functions, s0, s1) ──► ATen graph (values with shapes such as (4, s0, 16)) and what it assumes of s0, s1
The symbols are copies in an environment of their own: what tracing assumes of them binds no guard of Dynamo's, and is asked at each
call instead.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy

from torchane.capture.sizes.reasons import NotPaddable
from torchane.capture.torch_private import (
    ConstantSource,
    DimDynamic,
    FakeTensorMode,
    HigherOrderOperator,
    PythonReferenceAnalysis,
    ShapeEnv,
    enable_python_dispatcher,
    from_fun,
    has_data_mutation,
    make_fx,
    preserve_node_meta,
    sympy_interp,
    tag_activation_checkpoint,
    to_fun,
    tree_map_only,
    writes_noted,
)

#: Of a checkpointed graph's meta: the user's own policy.
_POLICY = "_checkpoint_context_fn"
_checkpoints = itertools.count()
#: State that later ops depend on, which ATen does not show: transforms of torch.func, gradients inside.
_TRANSFORMS = ("torch._functorch", "torch._C._functorch", "torch.autograd")


@dataclass(frozen=True)
class Traced:
    """module: placeholders as Dynamo's, in order; every node's meta["val"] has shapes in `symbols`. assumed: what must hold of them.
    written: positions of inputs whose new values come after the results. symbols: by Dynamo's names; one that must equal others is
    made of them. created: what they were before that was known, as `assumed` may have them."""

    module: fx.GraphModule
    symbols: Mapping[str, sympy.Expr]
    assumed: tuple[sympy.Basic, ...]
    written: tuple[int, ...]
    created: Mapping[str, sympy.Symbol]

    def true(self, sizes: Mapping[str, int]) -> dict[sympy.Symbol, int] | None:
        """The sizes of a call by symbol; None where they are not what the graph was traced for. sizes: by Dynamo's names."""
        found = {symbol: sizes[name] for name, symbol in self.symbols.items() if isinstance(symbol, sympy.Symbol)}
        is_same = all(sympy.sympify(symbol).xreplace(found) == sizes[name] for name, symbol in self.symbols.items())
        asked = {symbol: sizes[name] for name, symbol in self.created.items()}
        return found if is_same and all(claim.xreplace(asked) == sympy.true for claim in self.assumed) else None


def sizes_in(gm: fx.GraphModule, args: Sequence[Any]) -> dict[str, int]:
    """The value of every symbol, by Dynamo's name of it, in a call with these arguments."""
    found: dict[str, int] = {}
    for node, arg in zip(gm.graph.find_nodes(op="placeholder"), args, strict=False):
        example = node.meta.get("example_value")
        if isinstance(example, torch.SymInt):
            found |= _bound(example, arg)
        elif isinstance(example, torch.Tensor) and isinstance(arg, torch.Tensor):
            for size, true in zip(example.shape, arg.shape, strict=True):
                found |= _bound(size, true)
    return found


def _bound(size: Any, true: Any) -> dict[str, int]:
    expression = size.node.expr if isinstance(size, torch.SymInt) else None
    return {expression.name: int(true)} if isinstance(expression, sympy.Symbol) else {}


def trace(gm: fx.GraphModule, sizes: Mapping[str, int]) -> Traced:
    """Raises NotPaddable for a graph that is more than a function of its inputs. sizes: of one call; they decide nothing but what
    torch itself asks of them."""
    _refuse_state(gm)
    env = ShapeEnv(duck_shape=False, specialize_zero_one=False)
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    symbols: dict[str, Any] = {}
    created: dict[str, sympy.Symbol] = {}
    for name, value in sizes.items():
        source = ConstantSource(f"__{name}")
        symbol = env.create_symbol(value, source, DimDynamic.DYNAMIC, None, positive=True)
        symbols[name] = env.create_symintnode(symbol, hint=value, source=source)
        created[name] = symbol
    with mode, torch.enable_grad():
        inputs = [_input(node, symbols) for node in gm.graph.find_nodes(op="placeholder")]
        # Attention is a product and a softmax here, as in what is compiled.
        with sdpa_kernel(SDPBackend.MATH), preserve_node_meta(), enable_python_dispatcher():
            run = _WithoutWrites(gm)
            module = make_fx(run, tracing_mode="real", _allow_non_fake_inputs=True)(*inputs)
    module.graph.eliminate_dead_code()
    known = {name: number.node.expr for name, number in symbols.items()}
    fixed = [name for name, expression in known.items() if not sympy.sympify(expression).free_symbols]
    if fixed:
        raise NotPaddable(f"an op asks for one exact size ({', '.join(f'{name} = {sizes[name]}' for name in fixed)})")
    return Traced(module, known, tuple(guard.expr for guard in env.guards), run.written, created)


def _refuse_state(gm: fx.GraphModule) -> None:
    for node in gm.graph.nodes:
        if node.target is tag_activation_checkpoint:
            body = getattr(gm, node.args[0].target)
            if _POLICY in body.meta:
                raise NotPaddable.at(node, "a checkpoint with a context_fn says itself what is computed again")
            _refuse_state(body)
        else:
            _refuse_one(node)


def _refuse_one(node: fx.Node) -> None:
    module = getattr(node.target, "__module__", None) or ""
    name = getattr(node.target, "__name__", str(node.target))
    if isinstance(node.target, HigherOrderOperator):
        raise NotPaddable.at(node, f"{name} calls a graph of its own")
    if node.op == "call_function" and module.startswith(_TRANSFORMS) and "vmap" not in name and "batch" not in name:
        raise NotPaddable.at(node, f"{name} changes how later ops are differentiated")


def _input(node: fx.Node, symbols: Mapping[str, Any]) -> Any:
    example = node.meta.get("example_value")
    if isinstance(example, torch.SymInt):
        return _number(example, symbols)
    if not isinstance(example, torch.Tensor):
        return example
    shape, stride = ([_number(one, symbols) for one in numbers] for numbers in (example.shape, example.stride()))
    return torch.empty_strided(shape, stride, dtype=example.dtype)


def _number(number: Any, symbols: Mapping[str, Any]) -> Any:
    if not isinstance(number, torch.SymInt):
        return number
    expression = number.node.expr
    known = {symbol: symbols[symbol.name] for symbol in expression.free_symbols}
    return sympy_interp(PythonReferenceAnalysis, known, expression) if known else int(expression)


class _WithoutWrites:
    """Calls a graph on values that note what is written to them."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self.written: tuple[int, ...] = ()

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        with writes_noted():
            held = [to_fun(arg) for arg in args]
            results = _Detaching(self._gm).run(*held)
            self.written = tuple(i for i, one in enumerate(held) if isinstance(one, torch.Tensor) and has_data_mutation(one))
            return tuple(map(from_fun, (*results, *(held[i] for i in self.written))))


class _Detaching(fx.Interpreter):
    """Runs the graph; what it computes without gradients is detached, since ATen does not show where that was. Checkpointed graphs are
    run in place; their ops are marked as torch marks what the backward computes again."""

    def run(self, *args: Any) -> Any:
        was_on = torch.is_grad_enabled()
        try:
            return super().run(*args)
        finally:
            torch.set_grad_enabled(was_on)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is not tag_activation_checkpoint:
            return super().call_function(target, args, kwargs)
        number = next(_checkpoints)
        for node in args[0].graph.nodes:
            node.meta |= {"recompute": CheckpointPolicy.PREFER_RECOMPUTE, "ac_graph_id": number}
        return _Detaching(args[0]).run(*args[1:])

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node.op.startswith("call_") and not torch.is_grad_enabled():
            return tree_map_only(torch.Tensor, _detached, result)
        return result


def _detached(value: torch.Tensor) -> torch.Tensor:
    return value.detach() if value.is_floating_point() else value
