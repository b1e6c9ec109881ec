"""Where the nodes of a captured graph go."""

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import torchane
from torchane import chips
from torchane.capture.graph import Cut, cut, layer_name
from torchane.plan.step_graph import Place

NO_RULE = {"aten.embedding.default", "aten._log_softmax.default", "aten.relu.default"}


def reason_against(node: fx.Node) -> str | None:
    if str(node.target) in NO_RULE:
        return "no rule"
    value = node.meta.get("val")
    return None if value is None or value.is_floating_point() else "not floating point"


def traced(function, *inputs, static=(), layer_of=None) -> tuple[Cut, dict[str, Place]]:
    graph = make_fx(function, tracing_mode="fake")(*inputs).graph
    holders = list(graph.find_nodes(op="placeholder"))
    found = cut(graph, reason_against, {holders[i] for i in static}, chips.load("portable"), layer_of or (lambda node: ""))
    return found, {str(node.target).split(".")[1]: place for node, place in found.place.items() if node.op == "call_function"}


def test_a_node_that_no_tensor_reaches_is_a_constant() -> None:
    _, place = traced(lambda x: x @ torch.ones(4, 4).tril(), torch.randn(4, 4))
    assert place["tril"] is Place.CONSTANT


def test_random_numbers_are_never_folded() -> None:
    _, place = traced(lambda x: x @ torch.rand(4, 4), torch.randn(4, 4))
    assert place["rand"] is not Place.CONSTANT


def test_what_derives_from_static_inputs_alone_stays_on_the_host_with_its_reason() -> None:
    found, place = traced(lambda x, table: x @ table.cos(), torch.randn(4, 4), torch.randn(4, 4), static=[1])
    assert place["cos"] is Place.HOST
    assert "buffers" in next(reason for node, reason in found.reasons.items() if "cos" in node.name)


def test_an_op_without_a_rule_splits_its_graph_into_stages() -> None:
    found, _ = traced(lambda x, w: torch.relu(x @ w) @ w, torch.randn(4, 4), torch.randn(4, 4))
    assert [region.stage for region in found.regions] == [1, 3]


def test_a_view_is_never_in_a_region() -> None:
    found, place = traced(lambda x, w: (x @ w.t()).view(16), torch.randn(4, 4), torch.randn(4, 4))
    assert place["t"] is place["view"] is Place.VIEW
    assert [node.name for node in found.regions[0].nodes] == ["mm"]


def test_arithmetic_without_a_product_behind_a_host_op_stays_on_the_host() -> None:
    _, place = traced(
        lambda x, w: torch._log_softmax(x @ w, -1, False) * 2.0, torch.randn(4, 4), torch.randn(4, 4)
    )
    assert place["mul"] is Place.HOST


def test_arithmetic_alone_is_a_program_where_there_is_no_product_at_all() -> None:
    _, place = traced(lambda x: x * 2.0, torch.randn(4, 4))
    assert place["mul"] is Place.PROGRAM


def test_nodes_are_gathered_by_layer_and_sums_of_gradients_stay_with_their_last_input() -> None:
    layers = {"mm": "layers.0", "mm_1": "layers.1", "mm_2": "layers.0"}
    found, _ = traced(
        lambda x, w: (x @ w) @ w + x @ w, torch.randn(4, 4), torch.randn(4, 4), layer_of=lambda n: layers.get(n.name)
    )
    assert [(region.where, [n.name for n in region.nodes]) for region in found.regions] == [
        ("layers.0", ["mm", "mm_2"]),
        ("layers.1", ["mm_1", "add"]),
    ]


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("L['self'].model.layers.3.self_attn", "model.layers.3"),
        ("L['self']._modules['layers']._modules['11']._modules['q']", "layers.11"),
        ("L['self'].head", ""),
    ],
)
def test_layer_name_reads_the_repeated_block_from_the_module_stack(path: str, layer: str) -> None:
    node = fx.Graph().placeholder("x")
    node.meta["nn_module_stack"] = {"key": (path, nn.Linear)}
    assert layer_name(node) == layer


class Own(nn.Conv2d):
    """A user's module may compute anything: it stays a layer."""


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        (nn.Conv2d, ""), (nn.BatchNorm2d, ""), (nn.ReLU, ""), (nn.Linear, ""), ("torch.nn.modules.pooling.MaxPool2d", ""),
        (nn.MultiheadAttention, "features.3"), (nn.LSTM, "features.3"), (nn.TransformerEncoderLayer, "features.3"), (Own, "features.3"),
    ],
)  # fmt: skip
def test_a_numbered_module_of_torch_that_holds_no_others_is_no_layer(kind: object, layer: str) -> None:
    node = fx.Graph().placeholder("x")
    node.meta["nn_module_stack"] = {"key": ("L['self'].features.3", kind)}
    assert layer_name(node) == layer


def test_a_plain_network_of_numbered_layers_is_one_program_a_graph() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)]
    explained = torchane.explain(nn.Sequential(*layers), torch.randn(2, 3, 8, 8))
    assert [(plan.name, len(plan.dispatches)) for plan in explained.plans] == [("forward", 1), ("backward", 1)]


def test_a_node_of_no_module_has_no_layer() -> None:
    assert layer_name(fx.Graph().placeholder("x")) is None
