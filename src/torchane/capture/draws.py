"""Random numbers that ask nothing of a tensor but its shape are drawn from no tensor.

    noise = randn_like(h)      ->   noise = randn_like(empty_strided(h's shape and strides))
So they need not wait for the program that computes h, nor cut it in two. The strides stay: numbers come in the order in which a
tensor lies in memory. What is drawn, and in which order, is eager's.
"""

import torch
from torch import fx

aten = torch.ops.aten

#: Their first argument has a shape, strides and a dtype, and its values are not read.
_OF_A_SHAPE = frozenset({
    aten.rand_like.default, aten.randn_like.default, aten.randint_like.default, aten.randint_like.low_dtype, aten.bernoulli.p,
    aten.uniform.default, aten.exponential.default, aten.normal_functional.default, aten.log_normal.default,
    aten.cauchy.default, aten.geometric.default, aten.random.default, aten.random.to, getattr(aten.random, "from"),
})  # fmt: skip


def draw_from_shapes(graph: fx.Graph) -> None:
    """Rewrites the graph in place."""
    for node in list(graph.nodes):
        if node.target not in _OF_A_SHAPE or not isinstance(node.args[0], fx.Node):
            continue
        source = node.args[0]
        value = source.meta["val"]
        with graph.inserting_before(node):
            blank = graph.call_function(
                aten.empty_strided.default, (tuple(value.shape), value.stride()), {"dtype": value.dtype, "device": value.device}
            )
        blank.meta = {**node.meta, "val": value}
        node.args = (blank, *node.args[1:])
        if not source.users and source.op == "call_function":
            graph.erase_node(source)
