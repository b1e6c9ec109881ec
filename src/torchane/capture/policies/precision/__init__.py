"""Where fp16 is not enough: what PyTorch's autocast keeps in float32, unless a program is known to compute it as well.

    graph ── origins, bounds ──► demands ──► {node: reason}       of a forward
    backward ── the same ops, by autograd's numbers ──► host      its gradient is as sensitive as it
The yardstick is autocast on a float32 model: where its results in bf16 or fp16 are right, ours are. Products of matrices,
norms, softmax, activations and plain sums stay in programs, whose forms are tested over fp16's range (docs/numerics.md).
"""

from collections.abc import Mapping

from torch import fx

from torchane.capture.policies.facts import Facts
from torchane.capture.policies.precision.demands import PRECISION, Demands
from torchane.capture.policies.precision.origins import Origins

__all__ = ["PRECISION", "precision"]


def precision(graph: fx.Graph, facts: Facts) -> Mapping[fx.Node, str]:
    """The policy, of forwards; a backward follows its own (follow.py)."""
    if facts.precision == "fp16" or facts.forward is not None:
        return {}
    origins = Origins(graph, facts.raw, facts.weights, facts.static)
    return Demands(graph, origins, facts.given).find()
