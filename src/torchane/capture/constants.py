"""What no tensor reaches is evaluated while compiling, once for equal expressions: the causal mask of every layer is one tensor.

    layer 0   where(tril(ones(S, S)), 0, -inf) ─┐
    layer 1   where(tril(ones(S, S)), 0, -inf) ─┴─► one tensor, and one digest of its bytes
Of a value's own parts nothing is kept: of a mask for S tokens they are S x S too.
"""

import hashlib
from collections.abc import Hashable
from typing import Any

import torch
from torch import fx

from torchane.capture.torch_private import tree_flatten


class Constants:
    """Of the nodes of one graph that no tensor reaches."""

    def __init__(self, module: fx.GraphModule):
        self._module = module
        self._numbers: dict[fx.Node, int] = {}
        self._expressions: dict[Hashable, list[tuple[Any, int]]] = {}
        self._values: dict[int, Any] = {}
        self._digests: dict[int, str] = {}

    def value(self, node: fx.Node) -> Any:
        """A tensor for most; not to be written to."""
        number = self._number(node)
        if number not in self._values:
            self._values[number] = self._evaluated(node, {})
        return self._values[number]

    def digest(self, node: fx.Node) -> str:
        """Of a tensor's bytes, row-major."""
        number = self._number(node)
        if number not in self._digests:
            self._digests[number] = hashlib.sha256(self.value(node).contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
        return self._digests[number]

    def forget(self) -> None:
        """The values; they are evaluated again where one is asked for."""
        self._values = {}

    def _evaluated(self, node: fx.Node, parts: dict[fx.Node, Any]) -> Any:
        if node not in parts:
            number = self._number(node)
            if number in self._values:
                parts[node] = self._values[number]
            elif node.op == "get_attr":
                parts[node] = getattr(self._module, str(node.target))
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: self._evaluated(source, parts))
                parts[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return parts[node]

    def _number(self, node: fx.Node) -> int:
        """The same for equal expressions."""
        if node not in self._numbers:
            if node.op == "get_attr":
                key, form = (id(getattr(self._module, str(node.target))),), None
            else:
                values, form = tree_flatten((node.args, node.kwargs))
                key = (node.target, *(self._written(value) for value in values))  # type: ignore[assignment]
            known = self._expressions.setdefault(key, [])
            number = next((number for other, number in known if other == form), None)
            if number is None:
                number = len(self._numbers)
                known.append((form, number))
            self._numbers[node] = number
        return self._numbers[node]

    def _written(self, value: Any) -> Hashable:
        return ("node", self._number(value)) if isinstance(value, fx.Node) else (type(value), repr(value))
