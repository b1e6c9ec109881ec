"""Casts to float32 that leave no op in the ATen graph, from Dynamo's graph to the forward's."""

import pytest
import torch
from torch import fx, nn

from torchane.capture import backend
from torchane.capture.marks import is_marked, mark_float32


def marked(function) -> set[str]:
    """Names of what is marked in Dynamo's graph."""
    graphs: list[fx.GraphModule] = []

    def keep(gm, inputs):
        graphs.append(gm)
        return gm

    torch._dynamo.reset()
    torch.compile(function, backend=keep, dynamic=False)(torch.randn(4, 4), torch.randn(4, 4))
    mark_float32(graphs[0])
    return {node.name for node in graphs[0].graph.nodes if is_marked(node)}


REGIONS = {
    "a cast and what follows": (lambda x, w: (x.float() * 2 - 1).relu(), {"float_1", "mul", "sub", "relu"}),
    "up to a cast back": (lambda x, w: (x.float() * 2).to(x.dtype) - 1, {"float_1", "mul"}),
    "up to a product": (lambda x, w: (x.to(torch.float32) * 2) @ w - 1, {"to", "mul"}),
    "up to a residual sum": (lambda x, w: x.relu() + (x.float() * 2), {"float_1", "mul"}),
    "a softmax that is asked for in float32": (lambda x, w: x.relu().softmax(-1, dtype=torch.float32) * 2, {"softmax", "mul"}),
    "nothing": (lambda x, w: x.to("cpu") * 2, set()),
}


@pytest.mark.parametrize("region", REGIONS)
def test_what_is_marked(region):
    function, names = REGIONS[region]
    assert marked(function) == names


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        h = self.linear(x)
        return x + (h.float() - h.float().sum(-1, keepdim=True)).to(h.dtype)


def test_equal_layers_keep_their_marks_in_both_directions():
    torch._dynamo.reset()
    model = nn.Sequential(Block(), Block())
    torch.compile(model, backend=backend.ane, options={"device": "twin"}, dynamic=False)(torch.randn(2, 8)).sum().backward()
    sent = {(row.graph, row.module, row.op) for row in backend.COMPILED[-1].rows if row.why.startswith("precision: ") and "casts" in row.why}
    for layer in ("0", "1"):
        assert ("forward", layer, "aten.sub.Tensor") in sent
        assert ("forward", layer, "aten.sum.dim_IntList") in sent
        assert any(graph == "backward" and module == layer for graph, module, _ in sent)


def test_an_unknown_precision_is_refused():
    with pytest.raises(Exception, match="precision is 'bf16' .did you mean fp16[?].. Known: auto, fp16"):
        torch.compile(nn.Linear(2, 2), backend=backend.ane, options={"precision": "bf16"})(torch.randn(1, 2))
