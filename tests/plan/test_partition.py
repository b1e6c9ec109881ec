"""Which ops share a program: on graphs made by hand, without torch."""

from dataclasses import replace

import pytest
from partitioners import half_a_layer_a_program, sums_again, two_layers_a_program

from torchane import chips
from torchane.plan.partition import TOO_SMALL, Cut, Group, PartitionError, by_layer, check
from torchane.plan.step_graph import Node, Place, StepGraph

CHIP = chips.load("portable")
PARTITIONERS = (by_layer, two_layers_a_program, half_a_layer_a_program, sums_again)


def product(name: str, *inputs: str, layer: str | None = None) -> Node:
    return Node(name, "aten.mm.default", Place.PROGRAM, inputs, ((4, 4),), layer=layer, macs=64, is_product=True)


def sum_of(name: str, *inputs: str, layer: str | None = None) -> Node:
    return Node(name, "aten.add.Tensor", Place.PROGRAM, inputs, ((4, 4),), layer=layer)


def on_host(name: str, *inputs: str) -> Node:
    return Node(name, "aten.sort.default", Place.HOST, inputs)


def graph_of(*nodes: Node, results: tuple[str, ...] = (), **more) -> StepGraph:
    given = {source for node in nodes for source in node.inputs}.difference(node.name for node in nodes)
    inputs = (Node(name, "input", Place.INPUT) for name in sorted(given))
    return StepGraph({node.name: node for node in (*inputs, *nodes)}, results, **more)


def stack(layers: int) -> StepGraph:
    """Residual layers of two products."""
    nodes: list[Node] = []
    x = "x"
    for i in range(layers):
        layer = f"layers.{i}"
        nodes += [product(f"up{i}", x, "w", layer=layer), product(f"down{i}", f"up{i}", "w", layer=layer), sum_of(f"sum{i}", x, f"down{i}", layer=layer)]
        x = f"sum{i}"
    return graph_of(*nodes, results=(x,))


def groups(cut: Cut) -> list[tuple[str, ...]]:
    return [group.nodes for group in cut.groups]


def test_a_program_for_each_layer() -> None:
    assert groups(by_layer(stack(3), CHIP)) == [(f"up{i}", f"down{i}", f"sum{i}") for i in range(3)]


def test_two_layers_share_a_program_without_another_mechanism() -> None:
    cut = two_layers_a_program(stack(4), CHIP, None)
    assert [len(group.nodes) for group in cut.groups] == [6, 6]
    check(stack(4), cut)


@pytest.mark.parametrize("partition", PARTITIONERS)
def test_every_partitioner_gives_a_cut_that_can_be_carried_out(partition) -> None:
    graph = graph_of(
        sum_of("both", "a", "b", layer="l.0"), product("p", "both", "w", layer="l.0"), on_host("sorted", "p"),
        product("q", "sorted", "w", layer="l.1"), sum_of("r", "q", "both", layer="l.1"), product("s", "r", "both", layer="l.2"), results=("s",),
    )  # fmt: skip
    check(graph, partition(graph, CHIP, None))


def test_host_work_between_products_parts_their_stages() -> None:
    cut = by_layer(graph_of(product("a", "x"), on_host("b", "a"), product("c", "b")), CHIP)
    assert [group.stage for group in cut.groups] == [1, 3]


def test_a_stage_without_a_product_goes_to_the_host_with_the_reason() -> None:
    cut = by_layer(graph_of(product("a", "x"), on_host("b", "a"), sum_of("c", "b")), CHIP)
    assert cut.sent_to_host == {"c": TOO_SMALL}


def test_sums_alone_are_a_program_where_nothing_multiplies() -> None:
    assert groups(by_layer(graph_of(sum_of("a", "x")), CHIP)) == [("a",)]


def test_a_node_that_needs_a_later_group_moves_there() -> None:
    cut = by_layer(graph_of(product("a", "x", layer="l.0"), product("b", "a", layer="l.1"), sum_of("c", "a", "b", layer="l.0")), CHIP)
    assert groups(cut) == [("a",), ("b", "c")]


def test_a_power_is_computed_where_it_is_read() -> None:
    power = replace(sum_of("cube", "a", layer="l.0"), stays_with_readers=True)
    cut = by_layer(graph_of(product("a", "x", layer="l.0"), power, product("b", "cube", layer="l.1"), results=("b",)), CHIP)
    assert groups(cut) == [("a",), ("cube", "b")]


def test_more_ports_than_a_chip_takes_are_several_programs() -> None:
    many = CHIP.limit("surfaces") + 10
    cut = by_layer(graph_of(*(product(f"p{i}", f"x{i}") for i in range(many)), results=tuple(f"p{i}" for i in range(many))), CHIP)
    assert len(cut.groups) > 1
    assert all(2 * len(group.nodes) <= CHIP.limit("surfaces") for group in cut.groups)


def test_a_node_that_must_begin_a_program_does() -> None:
    graph = replace(stack(1), begins=frozenset({"down0"}))
    assert groups(by_layer(graph, CHIP)) == [("up0",), ("down0", "sum0")]


def wrong(cut: Cut, kind: str) -> Cut:
    first, second, *rest = cut.groups
    if kind == "in no program":
        return replace(cut, groups=(replace(first, nodes=first.nodes[1:]), second, *rest))
    if kind == "in programs 0 and 1":
        return replace(cut, groups=(first, replace(second, nodes=(first.nodes[0], *second.nodes)), *rest))
    if kind == "computed after it":
        return replace(cut, groups=(second, first, *rest))
    if kind == "belongs to stage 1":
        return replace(cut, groups=(replace(first, stage=3), second, *rest))
    return replace(cut, groups=(replace(first, nodes=("x", *first.nodes)), second, *rest))


@pytest.mark.parametrize("kind", ["in no program", "in programs 0 and 1", "computed after it", "belongs to stage 1", "computed elsewhere"])
def test_a_cut_that_cannot_be_carried_out_is_refused_with_the_node(kind: str) -> None:
    graph = stack(2)
    with pytest.raises(PartitionError, match=kind):
        check(graph, wrong(by_layer(graph, CHIP), kind))


def test_what_is_read_is_kept_in_order_when_it_is_computed_again() -> None:
    graph = graph_of(sum_of("both", "a", "b", layer="l.0"), product("p", "both", layer="l.0"), product("q", "both", "p", layer="l.1"), results=("q",))
    cut = sums_again(graph, CHIP, None)
    assert cut.groups[1] == Group(1, "l.1", ("both", "q"), frozenset({"both"}))
    check(graph, cut)
