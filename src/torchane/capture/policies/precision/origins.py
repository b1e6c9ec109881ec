"""What every value of a graph descends from, and whether autocast would hold it in 32 bits.

    STATIC < WEIGHT < RAW < ROUNDED         a value has the last of its operands'
RAW numbers are the caller's own: a batch and what arithmetic alone made of it. They may have any size and need all their
digits (a year, an income, a time). ROUNDED numbers come from a matrix product, whose operands every 16-bit training
rounds, or from a learned table.
"""

import enum
import operator
from collections.abc import Collection

import torch
from torch import fx

from torchane.capture.graph import CONTRACTIONS, VIEWS

aten = torch.ops.aten


class Origin(enum.IntEnum):
    STATIC = 0
    WEIGHT = 1
    RAW = 2
    ROUNDED = 3


#: What autocast computes in 16 bits, whatever it is given.
PRODUCTS = CONTRACTIONS | {
    aten.mv.default, aten.dot.default, aten.addmv.default, aten.addbmm.default, aten.einsum.default, aten.addr.default,
    aten.scaled_dot_product_attention.default,
}  # fmt: skip

#: Rows of a learned table: as large as weights are.
_LOOKUPS = frozenset({aten.embedding.default, aten.index.Tensor, aten.gather.default, aten.index_select.default, aten._embedding_bag.default})

#: Autocast's float32 list, as far as its ops reach a captured graph whole (torch/csrc/autocast_mode.h, CPU and CUDA).
FLOAT32_LIST = frozenset({
    aten.acos, aten.asin, aten.cosh, aten.sinh, aten.tan, aten.erfinv, aten.exp, aten.exp2, aten.expm1, aten.log, aten.log10,
    aten.log2, aten.log1p, aten.pow, aten.reciprocal, aten.rsqrt, aten.prod, aten.sum, aten.cumsum, aten.cumprod,
    aten.linalg_vector_norm, aten.native_layer_norm, aten.native_group_norm, aten._fused_rms_norm, aten._softmax, aten._safe_softmax,
    aten._log_softmax, aten.softplus, aten.dist, aten.renorm, aten.logcumsumexp, aten.logsumexp, aten.var, aten.var_mean, aten.std,
})  # fmt: skip


class Origins:
    """`of[node]`, and `wide`: the nodes that autocast would hold in 32 bits."""

    def __init__(self, graph: fx.Graph, raw: Collection[fx.Node], weights: Collection[fx.Node], static: Collection[fx.Node]):
        self.of: dict[fx.Node, Origin] = {}
        self.wide: set[fx.Node] = set()
        for node in graph.nodes:
            if node.op == "placeholder":
                kinds = ((static, Origin.STATIC), (weights, Origin.WEIGHT), (raw, Origin.RAW))
                self.of[node] = next((origin for nodes, origin in kinds if node in nodes), Origin.ROUNDED)
            elif node.op != "output":
                self.of[node] = self._origin(node)
            if node.op != "output" and _is_32_bit(node) and self._stays_wide(node):
                self.wide.add(node)

    def _origin(self, node: fx.Node) -> Origin:
        found = max((self.of[source] for source in node.all_input_nodes), default=Origin.STATIC)
        if found in (Origin.WEIGHT, Origin.RAW) and (node.target in PRODUCTS or (found is Origin.WEIGHT and node.target in _LOOKUPS)):
            return Origin.ROUNDED
        return found

    def _stays_wide(self, node: fx.Node) -> bool:
        if node.op in ("placeholder", "get_attr") or node.target is operator.getitem or node.target in VIEWS:
            return not node.all_input_nodes or node.all_input_nodes[0] in self.wide or not _is_32_bit(node.all_input_nodes[0])
        if node.target in PRODUCTS:
            return False
        if getattr(node.target, "overloadpacket", None) in FLOAT32_LIST:
            return True
        floats = [source for source in node.all_input_nodes if _is_32_bit(source)]
        tensors = [source for source in floats if source.meta["val"].dim() > 0] or floats  # a number of rank 0 widens nothing
        return not floats or any(source in self.wide for source in tensors)


def _is_32_bit(node: fx.Node) -> bool:
    values = node.meta.get("val")
    several = values if isinstance(values, tuple | list) else (values,)
    return any(isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.float64) for value in several)
