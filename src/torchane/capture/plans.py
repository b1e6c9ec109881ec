"""The plans of a model's training step, compiled and not run: what `torchane plan --preset` prices.

    captured = compile_step(lambda: build_model(config), batch_size=8, seq_len=256, options={"chip": "m4"})

Weights and tokens are fake tensors: a model of any size costs no memory but that of its programs.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from torchane.capture import backend, vocabulary
from torchane.capture.compile_options import Options
from torchane.capture.compiled import Compiled, also_for, told
from torchane.capture.progress import planning
from torchane.capture.torch_private import BackendCompilerFailed, FakeTensorMode, functorch_config
from torchane.errors import CaptureError, DeviceError, TorchaneError, TorchaneWarning
from torchane.plan import Plan
from torchane.plan.memory import Forecast, forecast
from torchane.plan.outline import PlannedStep, outline_of
from torchane.runtime.device import ProgramStats
from torchane.runtime.twin.device import TwinDevice, TwinProgram


class _Unloaded(TwinDevice):
    """Takes every program and makes nothing of it: none will run. What is planned is an engine's."""

    frees_processor = True

    def load(self, text: str, blobs: Mapping[str, bytes], *, name: str = "main") -> TwinProgram:
        return TwinProgram(name, (), (), ProgramStats(0, {}, 0, 0, 0), None)


class _Compiled(Exception):
    """All that was wanted is there: the call ends here."""


@dataclass(frozen=True)
class Captured:
    """The plans of every graph, forward before backward, the memory of a step, and the share of its multiply-adds that
    programs do; the host's are not in the plans."""

    plans: tuple[Plan, ...]
    parameters: int
    memory: Forecast
    share_in_programs: float

    @property
    def outline(self) -> PlannedStep:
        """What of it has a price."""
        return PlannedStep(tuple(map(outline_of, self.plans)), self.memory, self.share_in_programs)


def compile_step(
    build: Callable[[], nn.Module], *, batch_size: int, seq_len: int, options: Mapping[str, Any] | None = None
) -> Captured:
    """`compile_steps` for one set of options."""
    return compile_steps(build, batch_size=batch_size, seq_len=seq_len, options=[options or {}])[0]


def compile_steps(
    build: Callable[[], nn.Module], *, batch_size: int, seq_len: int, options: Sequence[Mapping[str, Any]]
) -> list[Captured]:
    """A step for each set of options of the backend, which differ in anything but `recompute`: the model is traced once for all of them.

    Compiles the model that `build` makes for tokens (batch_size, seq_len) and runs nothing. Where its loss can be computed in slices of the
    vocabulary, as `torchane train` does then, the loss is part of it.

    Raises CaptureError where its forward is more than one graph, for what follows the first would need the numbers of it;
    DeviceError where this machine cannot hold what is worked out while compiling.
    """
    assert len({one.get("recompute", "none") for one in options}) == 1, "one partition serves all"
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build()
        tokens = torch.zeros(batch_size, seq_len, dtype=torch.long)
    chosen = [{"device": _Unloaded(), **one} for one in options]
    vocab_size = getattr(getattr(model, "config", None), "vocab_size", None) or 0
    found: list[Compiled] = []
    if vocabulary.is_worth_it(tokens.numel(), vocab_size):
        found = _compiled(vocabulary.with_loss, (model, tokens, tokens), chosen, vocabulary.require_slices)
    found = found or _compiled(model, (tokens,), chosen, lambda gm: None)
    if not found:
        raise CaptureError("the model compiled to no graph: its forward computes nothing that depends on its tokens.")
    return [_captured(model, found[start :: len(chosen)]) for start in range(len(chosen))]


def _captured(model: nn.Module, found: Sequence[Compiled]) -> Captured:
    plans = tuple(plan for compiled in found for plan in compiled.plans.values())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    host_bytes = max(compiled.host_bytes for compiled in found)
    rows = [row for compiled in found for row in compiled.rows]
    macs = sum(row.macs for row in rows)
    share = sum(row.macs for row in rows if row.place == "program") / macs if macs else 1.0
    return Captured(plans, parameters, forecast(plans, parameters, trained=trained, host_bytes=host_bytes), share)


def _compiled(
    function: Callable[..., Any], inputs: Sequence[Any], options: Sequence[Mapping[str, Any]], require: Callable[[fx.GraphModule], None]
) -> list[Compiled]:
    """The graphs of a call that ends when they are compiled: of each one for each set of options. require: raises LogitsAreWhole for a graph that is not wanted: then none."""
    found: list[Compiled] = []

    def recording(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        require(gm)
        with told(found.append, keeps=False), also_for([Options.parse(one) for one in options[1:]]):
            backend.ane(gm, example_inputs, options=options[0])
        raise _Compiled

    try:
        with planning(), warnings.catch_warnings(), functorch_config.patch(force_non_lazy_backward_lowering=True):
            warnings.simplefilter("ignore", TorchaneWarning)  # what the host is left with is told by the caller
            torch.compile(function, backend=recording, dynamic=False, fullgraph=True)(*inputs)
    except BackendCompilerFailed as error:
        cause = error.inner_exception
        if isinstance(cause, TorchaneError):
            raise cause from None
        if isinstance(cause, MemoryError):
            raise DeviceError(
                f"{' x '.join(f'{size:,}' for size in inputs[-1].shape)} tokens: this machine cannot hold what planning works out for them ({cause}). "
                "Plan a smaller batch: what a step costs grows with it."
            ) from cause
        if not isinstance(cause, _Compiled | vocabulary.LogitsAreWhole):
            raise
    return found
