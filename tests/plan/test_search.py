"""How many layers share a program, by their predicted time: on graphs made by hand, without torch."""

import itertools
import time
from dataclasses import replace

import pytest

from torchane import chips
from torchane.plan.constants import pricing_for
from torchane.plan.estimate import Estimate
from torchane.plan.partition import by_layer, check
from torchane.plan.pieces import ports_of
from torchane.plan.search import WORTH, searched
from torchane.plan.step_graph import Node, Place, Role, StepGraph

CHIP, COST = chips.load("m4"), pricing_for("m4")


def stack(layers: int, width: int = 64, rows: int = 32, hidden: int = 4) -> StepGraph:
    """Residual layers of two products each, with weights of their own."""
    nodes = [Node("x", "input", Place.INPUT, shapes=((rows, width),), role=Role.BATCH)]
    x, inner = "x", hidden * width
    for i in range(layers):
        layer, macs = f"layers.{i}", rows * width * inner
        nodes += [
            Node(f"a{i}", "input", Place.INPUT, shapes=((width, inner),), role=Role.TRAINED),
            Node(f"b{i}", "input", Place.INPUT, shapes=((inner, width),), role=Role.TRAINED),
            Node(f"up{i}", "mm", Place.PROGRAM, (x, f"a{i}"), ((rows, inner),), layer=layer, macs=macs, is_product=True),
            Node(f"down{i}", "mm", Place.PROGRAM, (f"up{i}", f"b{i}"), ((rows, width),), layer=layer, macs=macs, is_product=True),
            Node(f"sum{i}", "add", Place.PROGRAM, (x, f"down{i}"), ((rows, width),), layer=layer),
        ]
        x = f"sum{i}"
    return StepGraph({node.name: node for node in nodes}, (x,))


def sizes(graph: StepGraph, **more) -> list[int]:
    """Layers of each program."""
    cut = searched(graph, more.get("chip", CHIP), COST)
    check(graph, cut)
    return [len(group.nodes) // 3 for group in cut.groups]


def test_small_layers_share_a_program():
    assert sizes(stack(8)) == [4, 4]


def test_layers_of_different_constants_are_loaded_beside_each_other_so_that_fewer_and_larger_programs_are_taken():
    graph = stack(120, width=2048, rows=2048)
    constants = frozenset(name for name in graph.nodes if name[0] in "ab")
    assert len(sizes(graph)) == 120  # one program, 120 times
    assert len(sizes(replace(graph, constants=constants))) <= CHIP.limit("loaded_programs") // 2


def test_layers_that_take_long_have_a_program_each():
    """Two thousand rows of 2,048: a dispatch is far below a hundredth."""
    assert sizes(stack(8, width=2048, rows=2048)) == [1] * 8


def test_without_a_cost_the_cut_is_by_layers():
    assert searched(stack(4), chips.load(), None) == by_layer(stack(4), chips.load(), None)


def test_no_cut_of_neighbours_is_predicted_to_take_less():
    """Every way to cut seven layers, beside the search."""
    graph = stack(7)
    estimate, groups = Estimate(graph, COST), by_layer(graph, CHIP, COST).groups

    def time_of(lengths: tuple[int, ...]) -> float:
        ends = list(itertools.accumulate(lengths))
        return sum(estimate.time_s([name for group in groups[end - n : end] for name in group.nodes]) for n, end in zip(lengths, ends, strict=True))

    every = [lengths for count in range(1, 8) for lengths in itertools.product(range(1, 5), repeat=count) if sum(lengths) == 7]
    least, today = min(map(time_of, every)), time_of((1,) * 7)
    assert time_of(tuple(sizes(graph))) <= least + WORTH * today


def test_of_cuts_as_good_the_one_with_fewer_programs():
    """Six layers in two programs: 3 and 3 share one, 4 and 2 do not."""
    assert sizes(stack(6)) == [3, 3]


def test_the_ports_of_a_chip_bound_a_program():
    few = replace(CHIP, limits={**CHIP.limits, "surfaces": replace(CHIP.limits["surfaces"], value=8)})
    graph = stack(6)
    cut = searched(graph, few, COST)
    assert [ports_of(graph, group.nodes) for group in cut.groups] == [8, 8]
    few = replace(CHIP, limits={**CHIP.limits, "surfaces": replace(CHIP.limits["surfaces"], value=7)})
    assert sizes(graph, chip=few) == [2, 2, 2]


def test_what_must_begin_a_program_does():
    graph = replace(stack(4), begins=frozenset({"up3"}))
    assert sizes(graph)[-1] == 1


def test_host_work_parts_programs():
    graph = stack(4)
    nodes = dict(graph.nodes)
    nodes["sorted"] = Node("sorted", "sort", Place.HOST, ("sum1",), ((32, 64),))
    ordered = {}
    for name, node in nodes.items():
        if name == "up2":
            ordered["sorted"] = nodes["sorted"]
        inputs = tuple("sorted" if name in ("up2", "sum2") and source == "sum1" else source for source in node.inputs)
        ordered.setdefault(name, replace(node, inputs=inputs))
    assert sizes(StepGraph(ordered, ("sum3",))) == [2, 2]


def test_a_program_is_named_after_its_layers():
    assert [group.where for group in searched(stack(4), CHIP, COST).groups] == ["layers.0-3"]


@pytest.mark.parametrize("name", ["m1", "m2", "m3pro", "m4max", "m5", "m6"])
def test_every_machine_has_a_cut_that_can_be_carried_out(name):
    graph = stack(9)
    chip = chips.of_machine(name)
    check(graph, searched(graph, chip, pricing_for(name)))


def test_ninety_six_layers_are_cut_in_a_second():
    begun = time.process_time()
    searched(stack(96), CHIP, COST)
    assert time.process_time() - begun < 1
