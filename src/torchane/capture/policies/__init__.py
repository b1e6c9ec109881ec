"""Which ops must run on the host although a rule could lower them, and why.

    graph, Facts ──► policy ──► {node: reason}       one file a policy, all of them in POLICIES

A rule says what a program can express. A policy says what a program may be trusted with: numbers that fp16 or the loss
scale would change without a word belong to PyTorch in float32. Policies run once a graph, before it is cut; each sees
what those before it have sent to the host.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import fx

from torchane.chips import Chip


@dataclass(frozen=True)
class Facts:
    """What a policy may know of a graph besides its nodes.

    chip: the target. tangents: placeholders of incoming gradients. weights: placeholders of parameters. static:
    placeholders that hold buffers, integers or masks. kept: results that are saved for the backward. on_host: nodes
    that are on the host already, with the reason. has_ranges: range control instead of one loss scale.
    """

    chip: Chip
    tangents: frozenset[fx.Node] = frozenset()
    weights: frozenset[fx.Node] = frozenset()
    static: frozenset[fx.Node] = frozenset()
    kept: frozenset[fx.Node] = frozenset()
    on_host: Mapping[fx.Node, str] = field(default_factory=dict)
    has_ranges: bool = False


Policy = Callable[[fx.Graph, Facts], Mapping[fx.Node, str]]

#: In the order in which they run, each with the reason for its place.
POLICIES: tuple[Policy, ...] = ()


def host_reasons(graph: fx.Graph, facts: Facts, policies: Collection[Policy] = POLICIES) -> dict[fx.Node, str]:
    """Every node that a policy sends to the host, with the reason that the first of them gave."""
    reasons = dict(facts.on_host)
    for policy in policies:
        found = policy(graph, replace(facts, on_host=reasons))
        reasons = {**found, **reasons}
    return reasons
