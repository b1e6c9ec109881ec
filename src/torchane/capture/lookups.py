"""Look-ups of rows that there are none of, by name: of them torch says "index out of range in self"."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from torchane.capture.looked_up import looked_up
from torchane.capture.sources import place_of
from torchane.errors import IndexRangeError

aten = torch.ops.aten

#: The table, the index, and along which axis: by the positions of the arguments.
_LOOKS_UP = {aten.embedding: (0, 1, None), looked_up: (0, 1, None), aten.index_select: (0, 2, 1), aten.gather: (0, 2, 1)}


def naming_lookups(call: fx.GraphModule) -> Callable[..., Sequence[Any]]:
    """The same call; an index beyond its table is an IndexRangeError that says where, which number, and how many rows there are."""

    def run(*args: Any) -> Sequence[Any]:
        try:
            result: Sequence[Any] = call(*args)
        except (IndexError, RuntimeError):
            named = _Named(call)
            named.extra_traceback = False  # fx would add lines of its own to the message
            named.run(*args)
            raise
        return result

    return run


class _Named(fx.Interpreter):
    """Runs a graph op by op until a look-up finds no row."""

    def run_node(self, node: fx.Node) -> Any:
        places = _LOOKS_UP.get(getattr(node.target, "overloadpacket", node.target))
        if places is not None:
            args, _ = self.fetch_args_kwargs_from_env(node)
            table, index, axis = args[places[0]], args[places[1]], 0 if places[2] is None else args[places[2]]
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < table.shape[axis]:
                raise IndexRangeError(_text(node, table, index, axis))
        return super().run_node(node)


def _text(node: fx.Node, table: torch.Tensor, index: torch.Tensor, axis: int) -> str:
    wrong = index[(index < 0) | (index >= table.shape[axis])]
    return (
        f"{'aten.embedding.default' if node.target is looked_up else node.target}{place_of(node)}: an index {tuple(index.shape)} holds {int(wrong[0])}, and there are {table.shape[axis]:,} rows in what it looks into, "
        f"0 to {table.shape[axis] - 1:,} of dimension {axis}. If they are positions, the sequence is too long for the model's table: give it at most "
        f"{table.shape[axis]:,}, or a larger table. If they are tokens, the tokenizer's vocabulary is larger than the model's."
    )
