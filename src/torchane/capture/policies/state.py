"""What a graph writes stays in float32: updates of parameters, optimizers' moments, averages, totals and counters.

    grad = mm(x.T, dy)          program
    m    = lerp(m, grad, 0.1)   host     m is written
    w    = w - lr * m           host     w is written

In fp16 a second moment of 1e-9 is zero and a weight of 1.0 does not feel an update of 1e-4. So from every result that is
an input's new value, the walk goes back through the arithmetic that makes it: that is the host's. It ends

- at products of matrices, whose results leave their program as float32. Those of nothing but state and gradients (Muon's,
  Shampoo's) are an optimizer's own, and the host's, and so are those that make a new value of the old one (a Kalman filter's);
- at activations: values that come from such products and feed further ones, and the moments of a batch norm. They are the
  network's, and are read there. A value that carries the state itself, as large as the state or smaller, is none of these,
  whatever reads it.

Two kinds of results are written without being an input's new value: Dynamo stores `self.total = self.total + x` in an
attribute, and functional training returns new parameters, `{name: w - lr * grads[name]}`.
"""

from collections.abc import Collection, Mapping

import torch
from torch import fx

from torchane.capture.graph import CONTRACTIONS, VIEWS
from torchane.capture.policies.facts import Facts
from torchane.capture.rules import RULES
from torchane.capture.rules.decompose import batch_moments

aten = torch.ops.aten

REASON = "it makes what the graph writes back, which stays in float32"

#: What updates are made of. A result of these and an input of its own shape is one, however the caller stores it.
_MOVES = frozenset({
    aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar, aten.mul.Tensor, aten.mul.Scalar,
    aten.div.Tensor, aten.div.Scalar, aten.lerp.Scalar, aten.lerp.Tensor, aten.addcmul.default, aten.addcdiv.default,
    aten.clamp.default, aten.clamp.Tensor, aten.where.self, aten.maximum.default, aten.minimum.default,
})  # fmt: skip


def keep_state_exact(graph: fx.Graph, facts: Facts) -> Mapping[fx.Node, str]:
    """The arithmetic of everything that the graph writes."""
    state = facts.state
    if not state.written and not state.lasting and not state.is_inference:
        return {}
    old = {node for node in state.written.values() if node is not None} | state.lasting
    products = {node for node in graph.nodes if node.target in CONTRACTIONS}
    network = state.frozen - set(state.written.values())  # a model that is not trained multiplies by them, tokens though it reads
    products -= _made_of(graph, (old | facts.static) - network) | _of_recurrences(graph, facts, products)
    activations = _from(graph, products) & _towards(graph, products)
    carrying = _carrying(old, products)
    stored = {node for node in state.returned if node in _carrying(state.lasting, products)}
    found = _above({*state.written, *stored}, products | (activations - carrying))
    if state.is_inference:
        moved = {node for node in state.returned if _is_moved(node, products | activations)}
        found |= _above(moved, products | activations)
    return dict.fromkeys(found, REASON)


def _above(results: Collection[fx.Node], ends: Collection[fx.Node]) -> set[fx.Node]:
    """The arithmetic that makes these results."""
    found: set[fx.Node] = set()
    pending = list(results)
    while pending:
        node = pending.pop()
        if node not in found and node.op == "call_function" and node not in ends:
            found.add(node)
            pending += node.all_input_nodes
    return {node for node in found if node.target in RULES and node.target not in VIEWS}


def _made_of(graph: fx.Graph, inputs: Collection[fx.Node]) -> set[fx.Node]:
    """Values that come of these inputs and constants alone."""
    found = set(inputs)
    for node in graph.nodes:
        if node.op in ("get_attr", "call_function") and all(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _of_recurrences(graph: fx.Graph, facts: Facts, products: Collection[fx.Node]) -> set[fx.Node]:
    """Products that turn an old value into the new one, as a Kalman filter's do: not those of parameters, and of no value that
    is moved on beside them."""
    found: set[fx.Node] = set()
    weighted = _from(graph, {node for node in products if any(_origin(source) in facts.weights for source in node.all_input_nodes)})
    for result, old in facts.state.written.items():
        if old is not None and result not in _carrying({old}, products):
            leading = _from(graph, {old}) & products & _above({result}, facts.weights)
            found |= leading - weighted
    return found


def _origin(node: fx.Node) -> fx.Node:
    """What a view is of."""
    while node.target in VIEWS and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _from(graph: fx.Graph, products: Collection[fx.Node]) -> set[fx.Node]:
    """Values that the products had a part in."""
    found = set(products)
    for node in graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _towards(graph: fx.Graph, products: Collection[fx.Node]) -> set[fx.Node]:
    """Values that have a part in later products, and the moments of batch norms."""
    moments = {node for node in graph.nodes if node.target is batch_moments}
    found = set(moments)
    for node in reversed(list(graph.nodes)):
        if node in found or node in products:
            found.update(node.all_input_nodes)
    return found


def _carrying(old: Collection[fx.Node], products: Collection[fx.Node]) -> set[fx.Node]:
    """Values that an old value is moved on in: no product lies between, and none is larger. A bias that is added to a batch is
    no longer carried."""
    found, pending = set(old), list(old)
    while pending:
        source = pending.pop()
        for node in source.users:
            if node not in found and node.op == "call_function" and node not in products and _moves_on(node, source):
                found.add(node)
                pending.append(node)
    return found


def _moves_on(node: fx.Node, source: fx.Node) -> bool:
    return (node.target is not aten.copy.default or source is node.args[1]) and _is_as_small(node, source)


def _is_as_small(node: fx.Node, source: fx.Node) -> bool:
    value, old = node.meta.get("val"), source.meta.get("val")
    if not isinstance(value, torch.Tensor) or not isinstance(old, torch.Tensor):
        return True  # one of several results, or the op that gives them
    return value.numel() <= old.numel() and value.dim() <= old.dim()


def _is_moved(node: fx.Node, ends: Collection[fx.Node]) -> bool:
    """A result that updates make of an input of its own shape."""
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current.op == "placeholder" and current is not node and current.meta["val"].is_floating_point():
            return True
        if current not in seen and current.target in (*_MOVES, *VIEWS) and current not in ends:
            seen.add(current)
            pending += [source for source in current.all_input_nodes if _have_equal_shapes(source, node)]
    return False


def _have_equal_shapes(node: fx.Node, other: fx.Node) -> bool:
    value, wanted = node.meta.get("val"), other.meta.get("val")
    return isinstance(value, torch.Tensor) and isinstance(wanted, torch.Tensor) and value.shape == wanted.shape
