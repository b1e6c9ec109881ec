"""`torchane.explain(model, *inputs)`: each op of a training step, where it runs and why.

The model is compiled as `torch.compile(model, backend="ane")` would compile it, on the inputs given, and
run forward once. Its gradients, buffers and the random stream are left as they were.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx, nn

from torchane.capture import backend
from torchane.capture.compiled import Compiled, told
from torchane.capture.report import Row
from torchane.capture.sizes.told import Sizes
from torchane.capture.torch_private import functorch_config
from torchane.plan import Plan
from torchane.plan.memory import Forecast, forecast


@dataclass(frozen=True)
class Explanation:
    """Every ATen call of every graph, the plans that came of them, the memory that a step takes, and which sizes programs serve where some
    were said to vary."""

    rows: tuple[Row, ...]
    plans: tuple[Plan, ...]
    memory: Forecast
    sizes: tuple[Sizes, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-adds of a forward and a backward."""
        return sum(row.macs for row in self.rows)

    def share(self, place: str) -> float:
        """The share of all multiply-adds that runs at a place: "program" or "host"."""
        return sum(row.macs for row in self.rows if row.place == place) / self.macs if self.macs else 0.0

    def to_json(self) -> str:
        """One object: rows, shares of multiply-adds by place, programs and dispatches by graph, memory in bytes, sizes that vary."""
        return json.dumps({
            "macs": self.macs,
            "macs_share": {place: self.share(place) for place in ("program", "host")},
            "graphs": [
                {"name": plan.name, "programs": len(plan.programs), "dispatches": len(plan.dispatches)}
                for plan in self.plans
            ],
            "memory_bytes": self.memory.to_dict(),
            "sizes": [asdict(one) for one in self.sizes],
            "rows": [asdict(row) for row in self.rows],
        })  # fmt: skip

    def __str__(self) -> str:
        dispatches = sum(len(plan.dispatches) for plan in self.plans)
        programs = sum(len(plan.programs) for plan in self.plans)
        lines = [
            f"{len(self.rows)} calls in {len(self.plans)} graphs: {programs} programs, {dispatches} dispatches a step",
            f"{self.macs / 1e9:.3f} G multiply-adds: {self.share('program'):.1%} in programs, {self.share('host'):.1%} on the host",
            str(self.memory),
            *map(str, self.sizes),
            "",
            f"{'where':8} {'calls':>6} {'macs':>7}  op and reason; first met in",
        ]
        return "\n".join([*lines, *(line for place in ("host", "program", "constant", "view") for line in self._table(place))])

    def _table(self, place: str) -> list[str]:
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            if row.place == place:
                groups.setdefault((row.op, row.why if place == "host" else ""), []).append(row)
        ordered = sorted(groups.items(), key=lambda item: -sum(row.macs for row in item[1]))
        return [
            f"{place:8} {len(rows):6d} {sum(row.macs for row in rows) / max(self.macs, 1):7.1%}  {op}"
            f"{f': {why}' if why else ''}{f'; {rows[0].where}' if rows[0].where else ''}"
            for (op, why), rows in ordered
        ]


def explain(
    model: Callable[..., Any], *inputs: Any, options: Mapping[str, Any] | None = None, dynamic: bool = False, **kwargs: Any
) -> Explanation:
    """Compiles `model` for these inputs and says what runs where. dynamic: every size may vary; torch._dynamo.mark_dynamic(x, axis) says it
    of one. Then it says, too, which sizes the programs serve, and how much of them only fills up, or which op wants exact sizes.

    options: those of the backend; the device is the twin unless they say otherwise, since nothing but one
    forward runs. Raises what torch.compile would raise: CaptureError for what no program can take.
    """
    found: list[Compiled] = []
    chosen = {"device": "twin", **(options or {})}

    def recording(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return backend.ane(gm, example_inputs, options=chosen)

    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()] if isinstance(model, nn.Module) else []
    # The backward is compiled with the forward, not at the first loss.backward(): there is none here.
    eagerly = functorch_config.patch(force_non_lazy_backward_lowering=True)
    with torch.random.fork_rng(devices=[]), eagerly, told(found.append, keeps=False):  # a graph with symbols is compiled where it is called
        torch.compile(model, backend=recording, dynamic=dynamic, isolate_recompiles=True)(*inputs, **kwargs)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    plans = tuple(plan for compiled in found for plan in compiled.plans.values())
    parameters = sum(parameter.numel() for parameter in model.parameters()) if isinstance(model, nn.Module) else 0
    rows = tuple(row for compiled in found for row in compiled.rows)
    memory = forecast(plans, parameters, host_bytes=max((compiled.host_bytes for compiled in found), default=0))
    return Explanation(rows, plans, memory, tuple(compiled.sizes for compiled in found if compiled.sizes is not None))
