"""What is said of a graph whose sizes vary: which program serves it, how much of that only fills up, or why its sizes are exact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Sizes:
    """Of one compiled graph. served: dimensions that vary, as the user would name them, with their sizes in the call that it was compiled for
    and in its programs. filling: the share of a forward's multiply-adds that only fill up, in that call. reason: why sizes are exact."""

    served: tuple[tuple[str, int, int], ...]
    filling: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"sizes are exact ({', '.join(f'{name}: {true}' for name, true, _ in self.served)}): {self.reason}"
        lines = [f"{name}: {true}, in programs of {size}, which serve all up to it" for name, true, size in self.served]
        return f"{'; '.join(lines)}; {self.filling:.0%} of the forward's multiply-adds only fill up"


def dimensions(gm: fx.GraphModule, names: Sequence[str]) -> dict[str, str]:
    """For each symbol of Dynamo's a dimension that it is the size of. names: of the graph's inputs."""
    found: dict[str, str] = {}
    for node, name in zip(gm.graph.find_nodes(op="placeholder"), names, strict=False):
        example = node.meta.get("example_value")
        for axis, size in enumerate(example.shape) if isinstance(example, torch.Tensor) else ():
            if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
                found.setdefault(size.node.expr.name, f"dimension {axis} of {name}")
    return found


def macs_at(module: fx.GraphModule, sizes: Mapping[sympy.Symbol, int]) -> int:
    """Multiply-adds of a traced graph with these sizes."""

    def at(value: Any) -> Any:
        if isinstance(value, torch.SymInt):
            return int(sympy.sympify(value.node.expr).xreplace(dict(sizes)))
        if isinstance(value, torch.Tensor):
            return torch.empty([at(size) for size in value.shape], dtype=value.dtype, device="meta")
        return value

    total = 0
    for node in module.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if packet in flop_registry:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: at(source.meta["val"]))
            total += int(flop_registry[packet](*args, **kwargs, out_val=at(node.meta["val"]))) // 2
    return total
