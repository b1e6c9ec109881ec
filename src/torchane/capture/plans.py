"""The plans of a model's training step, compiled and not run: what `torchane plan --preset` prices.

    captured = compile_step(lambda: build_model(config), batch_size=8, seq_len=256, options={"chip": "m4"})

Weights and tokens are fake tensors: a model of any size costs no memory but that of its programs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensorMode

from torchane.capture import backend
from torchane.errors import CaptureError, TorchaneError
from torchane.plan import Plan
from torchane.plan.memory import Forecast, forecast


class _Compiled(Exception):
    """All that was wanted is there: the call ends here."""


@dataclass(frozen=True)
class Captured:
    """The plans of every graph, forward before backward, and the memory of a step."""

    plans: tuple[Plan, ...]
    parameters: int
    memory: Forecast


def compile_step(
    build: Callable[[], nn.Module], *, batch_size: int, seq_len: int, options: Mapping[str, Any] | None = None
) -> Captured:
    """Compiles the model that `build` makes for tokens (batch_size, seq_len) and runs nothing.

    Raises CaptureError where its forward is more than one graph: what follows the first would need the numbers of it.
    """
    found: list[backend.Compiled] = []
    chosen = {"device": "twin", **(options or {})}

    def recording(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        known = len(backend.COMPILED)
        try:
            backend.ane(gm, example_inputs, options=chosen)
            found.extend(backend.COMPILED[known:])
        finally:
            del backend.COMPILED[known:]
        raise _Compiled

    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build()
        tokens = torch.zeros(batch_size, seq_len, dtype=torch.long)
    try:
        with functorch_config.patch(force_non_lazy_backward_lowering=True):
            torch.compile(model, backend=recording, dynamic=False, fullgraph=True)(tokens)
    except BackendCompilerFailed as error:
        cause = error.inner_exception
        if isinstance(cause, TorchaneError):
            raise cause from None
        if not isinstance(cause, _Compiled):
            raise
    if not found:
        raise CaptureError("the model compiled to no graph: its forward computes nothing that depends on its tokens.")
    plans = tuple(plan for compiled in found for plan in compiled.plans.values())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    host_bytes = max(compiled.host_bytes for compiled in found)
    return Captured(plans, parameters, forecast(plans, parameters, host_bytes=host_bytes))
