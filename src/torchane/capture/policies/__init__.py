"""Which ops must run on the host although a rule could lower them, and why.

    graph, Facts ──► policy ──► {node: reason}       one file a policy, all of them in POLICIES

A rule says what a program can express. A policy says what a program may be trusted with: numbers that fp16 or the loss
scale would change without a word belong to PyTorch in float32. Policies run once a graph, before it is cut; each sees
what those before it have sent to the host.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from torch import fx

from torchane.capture.policies.facts import Facts, State
from torchane.capture.policies.follow import follow
from torchane.capture.policies.masks import mask_products
from torchane.capture.policies.precision import PRECISION, precision
from torchane.capture.policies.selections import SELECTION, selections
from torchane.capture.policies.state import keep_state_exact

__all__ = ["FOLLOWED", "POLICIES", "Facts", "Policy", "State", "host_reasons"]

Policy = Callable[[fx.Graph, Facts], Mapping[fx.Node, str]]

#: In the order in which they run, each with the reason for its place. What linearity.py finds is there before them: a plan needs more
#: of it than reasons.
POLICIES: tuple[Policy, ...] = (
    follow,  # a gradient's reason is that of its op
    precision,  # asks what a value descends from, not what is on the host already
    mask_products,  # asks nothing but its own factor
    selections,  # asks what a branch descends from, not what is on the host already
    keep_state_exact,  # asks what results are for
)

#: How the reasons begin whose ops a backward follows to the host.
FOLLOWED = (PRECISION, SELECTION)


def host_reasons(graph: fx.Graph, facts: Facts, policies: Collection[Policy] = POLICIES) -> dict[fx.Node, str]:
    """Every node that a policy sends to the host, with the reason that the first of them gave."""
    reasons = dict(facts.on_host)
    for policy in policies:
        found = policy(graph, replace(facts, on_host=reasons))
        reasons = {**found, **reasons}
    return reasons
