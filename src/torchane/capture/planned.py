"""A graph before it is cut, with what is known of it, and after: its plan, and the host's part of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from torchane.abi.ports import PortLayout
from torchane.capture.graph import Cut
from torchane.capture.roles import Roles
from torchane.capture.wide import Blocks
from torchane.plan import Plan


@dataclass(frozen=True)
class Source:
    """A graph and what is known of it, whichever way it is cut. scaled: what the loss scale multiplies. numbers: values of the host that
    are none of masks, whatever they hold. frozen: names of values that programs hold as constants, and the form whose numbers they have; lent: of weights that
    are staged for each use."""

    name: str
    module: fx.GraphModule
    roles: Roles
    blocks: Blocks
    scaled: frozenset[fx.Node]
    numbers: frozenset[fx.Node]
    frozen: Mapping[str, str] = field(default_factory=dict)
    lent: frozenset[str] = frozenset()


@dataclass
class Planned:
    """A plan, its host segments by key, the layout of every surface by the value's name, the graph
    as it was cut, and the values that range control stored as they are."""

    plan: Plan
    host_calls: dict[str, Callable[..., Sequence[Any]]]
    layouts: dict[str, PortLayout]
    cut: Cut
    unscaled: frozenset[str] = frozenset()
