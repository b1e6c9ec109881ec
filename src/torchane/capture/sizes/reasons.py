"""Why a graph is compiled for exact sizes, by name."""

from torch import fx

from torchane.capture.sources import place_of


class NotPaddable(Exception):
    """What an op does cannot be proven right with rows that are only there to fill up. Caught where a graph is compiled for exact sizes
    instead, which says it."""

    @classmethod
    def at(cls, node: fx.Node, reason: str) -> "NotPaddable":
        return cls(f"{reason}{place_of(node)}")
