"""What would the engine's arithmetic do to this model?    report = torchane.audit(model, (tokens, targets))

    one forward and backward in `engine` arithmetic on the twin, every tensor of every program looked at
    the same under range control
    one forward and backward of the same weights in plain PyTorch, for the gradients that ought to be there
    all with the same masks of dropout
It names the products that are dropped, the sums near or past the range, and the parameters whose gradients are lost,
says which loss scale would suit, and what range control makes of it: `report.controlled` is the same report under it.
`report.table()`, `report.to_json()`, `report.to_svg()`.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchane.capture.compiled import Compiled, told
from torchane.data.batches import Batch
from torchane.errors import UsageError
from torchane.mil.ir import Function, Var
from torchane.plan import Plan
from torchane.runtime.inside import Inside
from torchane.runtime.observers import Moment
from torchane.train.audit_products import Magnitudes, ProductCounts, magnitudes, product_counts
from torchane.train.audit_report import Audit, Finding, ParameterFinding
from torchane.train.step import token_losses

PRODUCTS = ("matmul", "conv")
#: The largest sum of a backward pass should lie this many doublings below the end of the range, 2^15.
HEADROOM = 3
#: Under range control the first step finds its powers of two, by running programs more than once; the next no longer.
STEPS = 4
LossFunction = Callable[[Any, Any], Tensor]
#: Of one dispatch: each op's kind, value and numbers.
Record = list[tuple[str, str, Magnitudes, ProductCounts | None]]


def audit(model: nn.Module, batch: Batch | tuple[Any, Any], loss_fn: LossFunction | None = None) -> Audit:
    """One step's forward and backward in the engine's arithmetic, looked at from inside, without range control and with it.

    batch: (inputs, targets), or a Batch of tokens. loss_fn(outputs, targets) -> a scalar; absent: the mean cross
    entropy of logits (B, S, V). The model keeps its weights and gradients. Raises UsageError for another batch,
    NumericsError where no loss scale keeps the gradients in range.
    """
    inputs, targets = _batch(batch)
    loss_fn = loss_fn or mean_cross_entropy
    plain = copy.deepcopy(model)
    plain.zero_grad()
    with torch.random.fork_rng(devices=[]):
        exact = loss_fn(plain(inputs), targets)
    exact.backward()
    before, after = (
        _audited(copy.deepcopy(model), plain, exact.item(), lambda compiled: loss_fn(compiled(inputs), targets), ranges)
        for ranges in ("off", "on")
    )
    return replace(before, controlled=after)


def _audited(model: nn.Module, plain: nn.Module, loss_exact: float, loss_of: Callable[[Any], Tensor], ranges: str) -> Audit:
    records: dict[str, list[Record]] = defaultdict(list)

    def look(moment: Moment, function: Function, values: Mapping[Var, np.ndarray]) -> None:
        records[moment.plan.name].append(_looked_at(function, values))

    graphs: list[Compiled] = []
    options = {"device": "twin", "arithmetic": "engine", "ranges": ranges, "observers": [Inside(look)]}
    compiled = torch.compile(model, backend="ane", options=options, dynamic=False, fullgraph=True)
    for _ in range(STEPS):
        records.clear()
        model.zero_grad()
        reruns = _reruns(graphs)
        with torch.random.fork_rng(devices=[]), told(graphs.append):  # so all forwards draw the same
            loss = loss_of(compiled)
        loss.backward()
        if _reruns(graphs) == reruns:
            break
    findings = _findings(records, [plan for graph in graphs for plan in graph.plans.values()])
    scale = min((graph.loss_scale.last_scale for graph in graphs), default=1.0)
    return Audit(
        loss=loss.item(),
        loss_exact=loss_exact,
        loss_scale=scale,
        recommended_loss_scale=_recommended(findings, scale),
        findings=tuple(findings),
        parameters=tuple(_parameters(model, plain)),
    )


def _reruns(graphs: list[Compiled]) -> int:
    return sum(graph.ranges.reruns for graph in graphs if graph.ranges is not None)


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (B, S, V), targets (B, S), those below 0 not counted."""
    return token_losses(logits, targets).sum() / (targets >= 0).sum()


def _batch(batch: Batch | tuple[Any, Any]) -> tuple[Any, Any]:
    if isinstance(batch, Batch):
        return batch.tokens, batch.targets
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise UsageError(f"audit: the batch is a {type(batch).__name__}; it must be (inputs, targets).")
    return batch


def _looked_at(function: Function, values: Mapping[Var, np.ndarray]) -> list[tuple[str, str, Magnitudes, ProductCounts | None]]:
    found = []
    for op in function.ops:
        if op.kind.name in MOVES or len(op.outputs) != 1 or op.output not in values:
            continue
        counts = product_counts(op, values) if op.kind.name in PRODUCTS else None
        found.append((op.kind.name, op.output.name, magnitudes(values[op.output]), counts))
    return found


#: Ops that only place numbers elsewhere.
MOVES = {"const", "reshape", "transpose", "slice_by_size", "identity", "concat", "split", "squeeze", "expand_dims", "cast"}


def _findings(records: Mapping[str, list[Record]], plans: list[Plan]) -> list[Finding]:
    """The records of the last run of each plan, in its order: a backward that overflowed ran before at another scale."""
    findings = []
    for plan in plans:
        count = len(plan.dispatches)
        for dispatch, looked_at in zip(plan.dispatches, records[plan.name][-count:], strict=True):
            program = plan.programs[dispatch.program].name
            findings += [Finding(plan.name, dispatch.where, program, *one) for one in looked_at]
    return findings


def _recommended(findings: list[Finding], scale: float) -> float:
    """The power of two that brings the largest sum of the backward pass to HEADROOM doublings below 2^15."""
    largest = max((f.magnitudes.largest for f in findings if f.graph == "backward" and f.products), default=0.0)
    if largest == 0:
        return scale
    return scale * 2.0 ** math.floor(math.log2(2.0 ** (15 - HEADROOM) / largest))


def _parameters(shown: nn.Module, plain: nn.Module) -> list[ParameterFinding]:
    found = []
    for (name, ours), (_, exact) in zip(shown.named_parameters(), plain.named_parameters(), strict=True):
        if exact.grad is None:
            continue
        want = exact.grad.double()
        got = torch.zeros_like(want) if ours.grad is None else ours.grad.double()
        there = want != 0
        count = max(1, int(there.sum()))
        norm = want.norm().item()
        found.append(
            ParameterFinding(
                name=name,
                count=want.numel(),
                largest=want.abs().max().item(),
                lost_share=int(((got == 0) & there).sum()) / count,
                relative_error=(got - want).norm().item() / norm if norm else 0.0,
            )
        )
    return found
