"""What policies are told of a graph."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from torchane.chips import Chip


@dataclass(frozen=True)
class State:
    """What a graph leaves behind. written: results that are an input's new value, and the input. returned: the user's own
    results. lasting: inputs that live on after the call, and are not trained. frozen: of these the parameters that want no gradient.
    is_inference: nothing is differentiated."""

    written: Mapping[fx.Node, fx.Node | None] = field(default_factory=dict)
    returned: frozenset[fx.Node] = frozenset()
    lasting: frozenset[fx.Node] = frozenset()
    is_inference: bool = False
    frozen: frozenset[fx.Node] = frozenset()


@dataclass(frozen=True)
class Facts:
    """What a policy may know of a graph besides its nodes.

    chip: the target. tangents: placeholders of incoming gradients. weights: placeholders of parameters. static:
    placeholders that hold buffers, integers or masks. kept: results that are saved for the backward. on_host: nodes
    that are on the host already, with the reason. has_ranges: range control instead of one loss scale. state: what the
    graph writes. data: placeholders of floats that want no gradient. forward: of a backward, what its forward sent to the host.
    """

    chip: Chip
    tangents: frozenset[fx.Node] = frozenset()
    weights: frozenset[fx.Node] = frozenset()
    static: frozenset[fx.Node] = frozenset()
    kept: frozenset[fx.Node] = frozenset()
    on_host: Mapping[fx.Node, str] = field(default_factory=dict)
    has_ranges: bool = False
    data: frozenset[fx.Node] = frozenset()
    raw: frozenset[fx.Node] = frozenset()
    given: frozenset[fx.Node] = frozenset()
    precision: str = "auto"
    forward: "Forward | None" = None
    state: State = field(default_factory=State)


@dataclass(frozen=True)
class Forward:
    """Ops that a forward's policy sent to the host, with the reason: by name, as its backward knows what it recomputes, and
    by autograd's number of the op and its layer, as gradients are known by."""

    by_name: Mapping[str, str] = field(default_factory=dict)
    by_number: Mapping[tuple[int, str], str] = field(default_factory=dict)
