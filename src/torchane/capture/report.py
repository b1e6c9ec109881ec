"""Where each op of a captured graph runs and why: rows for `explain`, and one warning for what a user
would not expect on the host.
"""

import operator
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torchane.capture.graph import Cut, macs_of
from torchane.capture.host_graph import never_made
from torchane.capture.policies import state
from torchane.capture.policies.linearity import SEED
from torchane.capture.policies.precision import PRECISION
from torchane.capture.rules import ON_THE_HOST
from torchane.capture.sources import line_of, module_of
from torchane.capture.wide import BLOCK, WHOLE
from torchane.errors import TorchaneWarning
from torchane.plan.partition import TOO_SMALL
from torchane.plan.step_graph import Place

STATIC = "it depends on integers, masks or buffers alone"

NOWHERE = {Place.CONSTANT: "computed once, while compiling", Place.VIEW: "moves no numbers"}


@dataclass(frozen=True)
class Row:
    """One ATen call. place: "program", "host", "constant" or "view". macs: multiply-adds of one run."""

    graph: str
    name: str
    op: str
    place: str
    why: str
    module: str
    line: str
    macs: int

    @property
    def where(self) -> str:
        return ", ".join(part for part in (self.module, self.line) if part)


def rows_of(graph: str, cut: Cut) -> tuple[Row, ...]:
    """Every call of the graph, in its order."""
    return tuple(
        Row(
            graph, node.name, str(node.target), _place(cut, node).value, _why(cut, node),
            module_of(node), line_of(node), macs_of(node),
        )
        for node in cut.graph.nodes
        if node in cut.place and node.op == "call_function"
    )  # fmt: skip


def _place(cut: Cut, node: fx.Node) -> Place:
    """To take one of several results of an op on the host is no op."""
    return Place.VIEW if node.target is operator.getitem and cut.place[node] is Place.HOST else cut.place[node]


def _why(cut: Cut, node: fx.Node) -> str:
    place = _place(cut, node)
    if place is Place.PROGRAM:
        where = cut.regions[cut.region_of[node]].where
        return f"it has a rule; with {where}" if where else "it has a rule"
    if cut.reasons.get(node) == WHOLE and not _leaves_in_parts(cut, node):
        return "joined by PyTorch: not all of its blocks are programs'"
    if cut.reasons.get(node) == BLOCK and cut.place[cut.base(node.args[0])] is Place.PROGRAM:
        return "a program's value is unstaged to be cut into blocks, which are staged again"
    if place is Place.HOST:
        return cut.reasons.get(node) or "it belongs to an op on the host"
    return NOWHERE[place]


def host_bytes_of(cut: Cut) -> int:
    """Bytes of every float tensor that PyTorch computes in one run of the graph, as fp32."""
    left_out = never_made(cut)
    on_host = [node for node in cut.graph.nodes if cut.place.get(node) is Place.HOST and node not in left_out]
    made = [node for node in on_host if not _takes_no_memory(cut, node)]
    tensors = [tensor for node in made for tensor in _tensors(node.meta.get("val")) if tensor.is_floating_point()]
    return sum(4 * tensor.numel() for tensor in tensors)


def _takes_no_memory(cut: Cut, node: fx.Node) -> bool:
    """A block is a view; what programs compute in parts, and leaves, is counted as a result or a gradient."""
    if cut.reasons.get(node) == WHOLE and _leaves_in_parts(cut, node):
        return any(user.op == "output" for reader in (node, *node.users) for user in reader.users)
    return cut.reasons.get(node) == BLOCK


def _leaves_in_parts(cut: Cut, whole: fx.Node) -> bool:
    return all(cut.place[part] is Place.PROGRAM for part in whole.args[0])


class HostWork:
    """Warns of floating-point work that a user would expect in a program: one TorchaneWarning a graph, before it is lowered,
    and another for what turned out to have no legal form."""

    def __init__(self, graph: str):
        self._graph = graph
        self._told: set[str] = set()

    def tell(self, cut: Cut) -> None:
        rows = [row for row in rows_of(self._graph, cut) if row.name not in self._told]
        nodes = {node.name: node for node in cut.graph.nodes}
        runs_nothing = Place.PROGRAM not in cut.place.values()
        surprising = [row for row in rows if row.place == "host" and _is_surprising(nodes[row.name], row, runs_nothing)]
        if not surprising:
            return
        start = f"No program runs in this {self._graph} graph: " if runs_nothing else ""
        more = " more" if self._told else ""
        plural = "op runs" if len(surprising) == 1 else "ops run"
        self._told.update(row.name for row in surprising)
        warnings.warn(
            f"{start}{len(surprising)}{more} floating-point {plural} in PyTorch on the CPU in its {self._graph}: "
            f"{_listed(surprising)}. PyTorch computes them in the model's own dtypes, and time is lost there. "
            "torchane.explain(model, *inputs) lists every op.",
            TorchaneWarning,
            stacklevel=2,
        )


def _listed(rows: Iterable[Row], most: int = 4) -> str:
    """The ops of each reason, with the place of the first; at most so many reasons, and ops of one."""
    by_reason: dict[str, list[Row]] = {}
    for row in rows:
        by_reason.setdefault(row.why, []).append(row)
    shown = []
    for why, alike in list(by_reason.items())[:most]:
        ops = list(dict.fromkeys(row.op for row in alike))
        more = f" and {len(ops) - most} kinds more" if len(ops) > most else ""
        shown.append(f"{', '.join(ops[:most])}{more}{f' in {alike[0].where}' if alike[0].where else ''} ({why})")
    return "; ".join(shown) + (f"; and {len(by_reason) - most} reasons more" if len(by_reason) > most else "")


def _is_surprising(node: fx.Node, row: Row, runs_nothing: bool) -> bool:
    """Precision's sake is a reason to run a few ops elsewhere, not to run no program."""
    packet = getattr(node.target, "overloadpacket", None)
    if row.why.startswith(PRECISION) and not runs_nothing:
        return False
    is_expected = row.why in (TOO_SMALL, STATIC, BLOCK, WHOLE, SEED, state.REASON) or row.why.endswith("is empty")
    if packet is None or packet in ON_THE_HOST or is_expected:
        return False
    values = [tensor for one in (node, *node.all_input_nodes) for tensor in _tensors(one.meta.get("val"))]
    if all(tensor.dim() == 0 for tensor in values):
        return False  # a Python number that varies
    return any(tensor.is_floating_point() or tensor.is_complex() for tensor in _tensors(node.meta.get("val")))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value] if value.numel() > 0 else []
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []
