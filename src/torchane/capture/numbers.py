"""Python numbers that change from call to call become inputs of a graph.

    self.seen ── + 1 ── / 100 ── min(1.0) ──► mul(tensor, number)        a graph for each number
    self.seen ── + 1 ── / 100 ── min(1.0) ──► tensor ──► mul(tensor, tensor)      one graph
                 computed in Python             an input

Dynamo gives a number that changed a symbol of its own. What Python computes from it is computed in Python at each call, and where a
result meets a tensor in arithmetic it comes in as a tensor without axes. A number that is also a size, an index, or an argument of
anything but arithmetic is left as it is: the graph is compiled for each of its values.
"""

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

#: Functions of torch and Python whose number may be a tensor without axes, with the same result.
_ARITHMETIC: frozenset[Any] = frozenset({
    operator.add, operator.sub, operator.mul, operator.truediv, operator.pow,
    operator.iadd, operator.isub, operator.imul, operator.itruediv,
    torch.add, torch.sub, torch.subtract, torch.mul, torch.multiply, torch.div, torch.divide, torch.true_divide, torch.lerp, torch.pow,
    *(getattr(module, name) for module in (operator, torch) for name in ("gt", "lt", "ge", "le", "eq", "ne")),
})  # fmt: skip
#: The same as methods of a tensor, in place or not.
_METHODS = frozenset({
    *("gt", "lt", "ge", "le", "eq", "ne"),
    *(name + end for name in ("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "lerp", "pow") for end in ("", "_")),
})  # fmt: skip
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
_HALVES = (torch.float16, torch.bfloat16)
#: Of their keywords, a number that must stay one.
_STAY_NUMBERS = frozenset({"alpha", "rounding_mode"})


@dataclass(frozen=True)
class Hoisted:
    """graph: the graph, with an input more for each number, after its own inputs. varying: positions of the numbers of Python that the
    graph no longer depends on. names: of the inputs that were added, as the user would write what they are made of."""

    graph: fx.GraphModule
    varying: frozenset[int]
    names: tuple[str, ...]
    _numbers: tuple[fx.Node, ...]
    _dtypes: tuple[torch.dtype, ...]
    _returned: Mapping[int, fx.Node]
    _roots: Mapping[fx.Node, int]

    def inputs(self, args: Sequence[Any]) -> tuple[list[torch.Tensor], dict[int, Any]]:
        """The tensors to add to a call's arguments, and what it returns besides the graph's results, by position."""
        made: dict[fx.Node, Any] = {}

        def value(node: fx.Node) -> Any:
            if node not in made:
                if node in self._roots:
                    given = args[self._roots[node]]
                    made[node] = given.item() if isinstance(given, torch.Tensor) else given
                else:
                    made[node] = node.target(*fx.node.map_arg(node.args, value), **fx.node.map_arg(node.kwargs, value))  # type: ignore[operator]
            return made[node]

        tensors = [torch.as_tensor(value(node), dtype=dtype) for node, dtype in zip(self._numbers, self._dtypes, strict=True)]
        return tensors, {position: value(node) for position, node in self._returned.items()}


def hoist_numbers(gm: fx.GraphModule, is_number: Callable[[fx.Node], bool], name_of: Callable[[fx.Node], str]) -> Hoisted | None:
    """Makes inputs of the numbers that only arithmetic reads, or gives None where there are none.

    is_number: says of an input that it is a Python float, which Dynamo hands over as a tensor.
    """
    roots = _roots(gm.graph, is_number)
    while True:
        scalars = _made_of(roots, gm.graph)
        bad = {root for node, origin in scalars.items() if not _only_arithmetic_reads(node, scalars) for root in origin}
        if not bad:
            break
        roots = {node: position for node, position in roots.items() if node not in bad}
    if not roots:
        return None
    return _rewritten(gm, roots, scalars, name_of)


def _roots(graph: fx.Graph, is_number: Callable[[fx.Node], bool]) -> dict[fx.Node, int]:
    """Symbols that are no tensor's size, and the positions of the inputs that they come from."""
    placeholders = graph.find_nodes(op="placeholder")
    sizes: set[Any] = set()
    for node in placeholders:
        example = node.meta.get("example_value")
        if isinstance(example, torch.Tensor):
            for number in (*example.shape, *example.stride(), example.storage_offset()):
                sizes |= number.node.expr.free_symbols if isinstance(number, torch.SymInt) else set()
    found: dict[fx.Node, int] = {}
    for position, node in enumerate(placeholders):
        example = node.meta.get("example_value")
        if is_number(node):
            readers = list(node.users)
            if all(reader.target == "item" for reader in readers):
                found |= dict.fromkeys(readers, position)
        elif isinstance(example, torch.SymInt | torch.SymFloat) and sizes.isdisjoint(example.node.expr.free_symbols):
            found[node] = position
    return found


def _made_of(roots: Mapping[fx.Node, int], graph: fx.Graph) -> dict[fx.Node, frozenset[fx.Node]]:
    """Every number that Python makes of the roots alone, and which of them."""
    found = {root: frozenset({root}) for root in roots}
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node.op == "call_function" and node not in found and sources and all(source in found for source in sources):
            # Dynamo returns a float as a tensor
            if node.target is torch.scalar_tensor or isinstance(node.meta.get("example_value"), _NUMBERS):
                found[node] = frozenset().union(*(found[source] for source in sources))
    return found


def _only_arithmetic_reads(number: fx.Node, scalars: Collection[fx.Node]) -> bool:
    return all(user in scalars or _takes(user, number) for user in number.users)


def _takes(user: fx.Node, number: fx.Node) -> bool:
    """It would compute the same with a tensor in the number's place."""
    if user.op == "output":
        return number in user.args[0]  # as a result of its own
    result = user.meta.get("example_value")
    is_arithmetic = user.target in _ARITHMETIC if user.op == "call_function" else user.op == "call_method" and user.target in _METHODS
    if not is_arithmetic or not isinstance(result, torch.Tensor) or any(user.kwargs.get(name) is number for name in _STAY_NUMBERS):
        return False
    if user.target in (operator.pow, torch.pow) and user.args[0] is number:
        return False
    # Two tensors without axes would give float32, and lerp takes one dtype alone.
    is_strict = result.dim() == 0 or user.target in (torch.lerp, "lerp", "lerp_")
    return "out" not in user.kwargs and not (is_strict and result.dtype in _HALVES)


def _dtype_in(user: fx.Node, number: fx.Node) -> torch.dtype:
    """Of the tensor that stands for a number. Beside a tensor of fewer digits torch computes with it in float32 and rounds the result."""
    dtype = user.meta["example_value"].dtype
    if dtype is torch.bool:  # a comparison
        examples = [source.meta["example_value"] for source in user.all_input_nodes]
        other = next(example for example in examples if isinstance(example, torch.Tensor))
        is_whole = isinstance(number.meta.get("example_value"), int | torch.SymInt)
        dtype = other.dtype if other.is_floating_point() or is_whole else torch.get_default_dtype()
    return torch.float32 if dtype in _HALVES else dtype


def _rewritten(
    gm: fx.GraphModule, roots: Mapping[fx.Node, int], scalars: Collection[fx.Node], name_of: Callable[[fx.Node], str]
) -> Hoisted:
    """The graph without the arithmetic on numbers. What it returned of them is returned as None and put in at each call."""
    wanted: dict[tuple[fx.Node, torch.dtype], None] = {}
    for node in gm.graph.nodes:
        if node not in scalars and node.op != "output":
            wanted |= {(source, _dtype_in(node, source)): None for source in node.all_input_nodes if source in scalars}
    graph = fx.Graph()
    made: dict[fx.Node, Any] = {node: graph.node_copy(node) for node in gm.graph.find_nodes(op="placeholder")}
    tensors: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
    for i, (number, dtype) in enumerate(wanted):
        tensors[number, dtype] = graph.placeholder(f"number_{i}")
        tensors[number, dtype].meta["example_value"] = torch.tensor(0, dtype=dtype, device="meta")
    results = list(gm.graph.output_node().args[0])
    for node in gm.graph.nodes:
        if node.op == "placeholder" or node in scalars:
            continue
        if node.op == "output":
            graph.output(tuple(None if result in scalars else fx.node.map_arg(result, made.__getitem__) for result in results))
        else:

            def argument(source: fx.Node, node: fx.Node = node) -> fx.Node:
                return tensors[source, _dtype_in(node, source)] if source in scalars else made[source]

            made[node] = graph.node_copy(node, argument)
    origins = _made_of(roots, gm.graph)
    numbers = tuple(number for number, _ in wanted)
    places = gm.graph.find_nodes(op="placeholder")
    return Hoisted(
        fx.GraphModule(gm, graph),
        frozenset(roots.values()),
        tuple(" and ".join(sorted({name_of(places[roots[root]]) for root in origins[number]})) for number in numbers),
        numbers,
        tuple(dtype for _, dtype in wanted),
        {i: result for i, result in enumerate(results) if result in scalars},
        dict(roots),
    )
