"""What nodes cost before they are lowered, beside the same product priced from MIL."""

from dataclasses import replace

import numpy as np
import pytest

from torchane.chips.points import machine
from torchane.mil.build import Builder
from torchane.plan.constants import pricing_for
from torchane.plan.cost import program_cost
from torchane.plan.estimate import Estimate
from torchane.plan.step_graph import Node, Place, StepGraph
from torchane.plan.work import work_of

M4 = pricing_for("m4")


def graph_of(x: tuple[int, ...], y: tuple[int, ...], out: tuple[int, ...]) -> StepGraph:
    macs = x[-1]
    for size in out:
        macs *= size
    nodes = [
        Node("x", "input", Place.INPUT, shapes=(x,)), Node("y", "input", Place.INPUT, shapes=(y,)),
        Node("p", "mm", Place.PROGRAM, ("x", "y"), (out,), macs=macs, is_product=True),
    ]  # fmt: skip
    return StepGraph({node.name: node for node in nodes}, ("p",))


@pytest.mark.parametrize(("x", "y"), [((1, 1, 256, 768), (1, 1, 768, 2048)), ((1, 12, 256, 64), (1, 12, 64, 256)), ((1, 1, 768, 2048), (1, 1, 2048, 768))])
def test_a_product_costs_what_its_program_does(x, y):
    b = Builder()
    program = b.program(b.matmul(x=b.input("x", x), y=b.input("y", y)))
    work = work_of(program)
    out = program.outputs[0].type.shape
    priced = program_cost(work.layers, work.bytes_in, work.bytes_out, machine("m4"), M4.engine, M4.shared, in_a_loop=True).time_s
    assert Estimate(graph_of(x, y, out), M4).time_s(("p",)) == pytest.approx(priced)


@pytest.mark.parametrize("is_left", [False, True])
def test_a_product_with_a_constant_costs_what_its_convolution_does(is_left):
    b = Builder()
    program = b.program(b.conv(x=b.input("x", (1, 768, 1, 256)), weight=np.zeros((2048, 768, 1, 1), np.float16)))
    work = work_of(program)
    priced = program_cost(work.layers, work.bytes_in, work.bytes_out, machine("m4"), M4.engine, M4.shared, in_a_loop=True).time_s
    weight, x = (1, 1, 2048, 768), (1, 1, 768, 256)
    graph = graph_of(weight, x, (1, 1, 2048, 256)) if is_left else graph_of((1, 1, 256, 768), (1, 1, 768, 2048), (1, 1, 256, 2048))
    graph = replace(graph, constants=frozenset("x" if is_left else "y"))
    assert Estimate(graph, M4).time_s(("p",)) == pytest.approx(priced)


def test_what_stays_inside_costs_no_surface():
    nodes = [Node("x", "input", Place.INPUT, shapes=((4096, 4096),))]
    nodes += [Node(f"n{i}", "add", Place.PROGRAM, (f"n{i - 1}" if i else "x",), ((4096, 4096),)) for i in range(2)]
    graph = StepGraph({node.name: node for node in nodes}, ("n1",))
    estimate = Estimate(graph, M4)
    assert estimate.time_s(("n0", "n1")) < estimate.time_s(("n0",)) + estimate.time_s(("n1",)) - 0.5 * M4.engine.dispatch_s


def test_a_view_is_read_as_what_it_shows():
    nodes = [
        Node("x", "input", Place.INPUT, shapes=((64, 64),)), Node("t", "t", Place.VIEW, ("x",), ((64, 64),)),
        Node("a", "add", Place.PROGRAM, ("x", "t"), ((64, 64),)),
    ]  # fmt: skip
    graph = StepGraph({node.name: node for node in nodes}, ("a",))
    plain = StepGraph({**{node.name: node for node in nodes}, "a": Node("a", "add", Place.PROGRAM, ("x",), ((64, 64),))}, ("a",))
    assert Estimate(graph, M4).time_s(("a",)) == Estimate(plain, M4).time_s(("a",))
