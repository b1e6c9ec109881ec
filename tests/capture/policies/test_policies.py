"""How policies are asked: in order, each knowing what those before it sent to the host."""

from torch import fx

from torchane import chips
from torchane.capture.policies import Facts, host_reasons


def _graph() -> tuple[fx.Graph, fx.Node, fx.Node]:
    graph = fx.Graph()
    x = graph.placeholder("x")
    return graph, x, graph.output((x,))


def test_the_first_reason_stands_and_later_policies_see_it() -> None:
    graph, x, result = _graph()
    seen = []

    def later(graph: fx.Graph, facts: Facts) -> dict[fx.Node, str]:
        seen.append(dict(facts.on_host))
        return {x: "later", result: "later"}

    reasons = host_reasons(graph, Facts(chips.load("portable")), (lambda graph, facts: {x: "first"}, later))
    assert seen == [{x: "first"}]
    assert reasons == {x: "first", result: "later"}
