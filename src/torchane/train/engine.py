"""The model through the `ane` backend of torch.compile: forward and backward are engine programs."""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchane.capture import backend, repeats, vocabulary
from torchane.capture.chains import copied_once
from torchane.capture.compile_options import Options
from torchane.capture.compiled import Compiled, told
from torchane.capture.torch_private import BackendCompilerFailed, functorch_config
from torchane.data.batches import IGNORE
from torchane.errors import RunFolderError, TorchaneError, shown
from torchane.plan.memory import ADVICE, forecast, require_fits
from torchane.runtime.devices import open_device
from torchane.runtime.loss_scale import LossScale
from torchane.runtime.range_control import RangeControl
from torchane.runtime.weights import Weights
from torchane.train.step import LOGITS_COPIES

#: Powers of two of scales stay far within float32's.
LARGEST_EXPONENT = 1000


def _undrawn(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


@functools.cache
def _as_region(kind: type[nn.Module], count: int) -> type[nn.Module]:
    forward = torch.compiler.nested_compile_region(kind.forward, max_reuse_entries=count)

    def reduced(block: nn.Module, protocol: int) -> tuple[Any, ...]:
        return _undrawn, (kind,), block.__dict__

    own = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__reduce_ex__": reduced, "is_region": True}
    return type(kind.__name__, (kind,), own)


def trace_blocks_once(model: nn.Module) -> None:
    """Dynamo reads the forward of equal blocks once and repeats what it saw, as far as its guards allow.

    Blocks are the modules of a ModuleList of one class, of the user's own, without buffers (torch takes no region that writes
    to one) and without further lists. Their class becomes a subclass; a copy or pickle has the class from before.
    """
    for blocks in (module for module in model.modules() if type(module) is nn.ModuleList):
        inside = [module for block in blocks for module in block.modules()]
        kinds = {type(block) for block in blocks}
        if (
            len(blocks) > 1 and len(kinds) == 1 and not any(kind.__module__.startswith("torch.") for kind in kinds)
            and not any(isinstance(module, nn.ModuleList) or module._buffers or hasattr(module, "is_region") for module in inside)
        ):  # fmt: skip
            for block in set(blocks):
                block.__class__ = _as_region(type(block), len(blocks))


class EngineModel:
    """A `CompiledModel`. It remembers the loss scale and the powers of two of range control, on which the last bits of a
    gradient depend.

    device: "auto", "twin" or "ane"; `self.device` says which it became. options: the backend's others (torchane/options.py).
    A graph break or one shape too many is an error, where torch.compile would go on in eager PyTorch. Each shape of tokens has a
    graph of its own, and its loss scale.
    Raises UsageError for an unknown device, DeviceError for one that is not there or where gradients and optimizer
    cannot fit into memory. The first training call tells `announce` what a step will take, before it runs, and
    raises DeviceError, with `advice`, where that cannot fit. optimizer: its name, and how many numbers it keeps for each that is trained.
    """

    def __init__(self, model: nn.Module, device: str = "auto", **options: Any) -> None:
        self._options = {"device": device, "progress": "off", **options}  # the command says it
        parsed = Options.parse(self._options)
        opened = open_device(device, parsed.arithmetic)
        self.device = opened.name
        # Where numbers are the same to the bit. Range control looks at what is kept; an engine pays for each op.
        self._keeps_less = self.device == "twin" and parsed.arithmetic != "engine" and not parsed.wants_ranges(opened)
        self._parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self._frozen_bytes = sum(one.numel() * one.element_size() for one in model.parameters() if not one.requires_grad)
        self.optimizer: tuple[str, int] = ("AdamW", 2)
        self.reads_surfaces = False
        self.announce: Callable[[str], None] = lambda text: None
        self.advice = ADVICE
        require_fits(forecast((), self._parameters, param_copies=0))
        self._scales: list[tuple[str, LossScale]] = []  # by the shape of what comes in
        self._restored: list[tuple[str, LossScale]] = []
        self._weights: list[Weights] = []  # of graphs that train
        self._ranges: list[tuple[str, RangeControl]] = []  # by what identifies a graph
        self._restored_ranges: list[tuple[str, Mapping[str, Any]]] = []
        trace_blocks_once(model)
        # By the name "ane", a second model of the same shape in this process would share graph and loss scale.
        self._forward = torch.compile(model, backend=self._compile, dynamic=False, fullgraph=True)
        self._losses = torch.compile(vocabulary.with_loss, backend=self._compile_sliced, dynamic=False, fullgraph=True)
        self._model = model
        self._vocab_size = getattr(getattr(model, "config", None), "vocab_size", None) or 0
        self._may_slice = True

    def __call__(self, tokens: Tensor, *positions: Tensor) -> Tensor:
        return self._call(self._forward, tokens, *positions)

    def losses(self, tokens: Tensor, targets: Tensor, *positions: Tensor) -> Tensor | None:
        """tokens, targets, positions (B, S) -> nll (B * S,) float32, without a logit for each token of the vocabulary; None where logits are few, or
        are not simply a product with the classifier's weights."""
        if not self._may_slice or not vocabulary.is_worth_it(tokens.numel(), self._vocab_size):
            return None
        try:
            return self._call(self._losses, self._model, tokens, targets, IGNORE, *positions)
        except vocabulary.LogitsAreWhole:
            self._may_slice = False
            return None

    def _call(self, compiled: Callable[..., Tensor], *inputs: Any) -> Tensor:
        try:
            with copied_once():
                return compiled(*inputs)
        except BackendCompilerFailed as error:
            if isinstance(error.inner_exception, TorchaneError | vocabulary.LogitsAreWhole):
                raise error.inner_exception from None
            raise

    def weights(self) -> Sequence[Weights]:
        return self._weights

    def state(self) -> dict[str, Any]:
        ranges = [[key, control.to_dict()] for key, control in self._ranges] + [list(one) for one in self._restored_ranges]
        return {
            "loss_scales": sorted(([key, asdict(scale)] for key, scale in [*self._scales, *self._restored]), key=lambda one: one[0]),
            "ranges": sorted(ranges, key=lambda one: one[0]),  # a resumed run compiles in another order
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes the state that a checkpoint holds; call it before the first training forward.
        Raises RunFolderError if it is another version's.
        """
        try:
            _require_small_numbers(state)
            self._restored = [(str(key), _loss_scale(values)) for key, values in state.get("loss_scales", ())]
            self._restored_ranges = [(str(key), dict(value)) for key, value in state.get("ranges", ())]
            for exponent in (e for _, plans in self._restored_ranges for plan in plans.values() for one in plan for e in one["exponents"].values()):
                if abs(exponent) > LARGEST_EXPONENT:
                    raise ValueError(f"a tensor's power of two is 2^{exponent}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunFolderError(
                f"The checkpoint's loss scale does not fit this version of torchane: {error}. "
                "Resume with the version that wrote it."
            ) from error

    def _compile_sliced(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        vocabulary.require_slices(gm)
        return self._compile(gm, example_inputs)

    def _compile(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs: list[Compiled] = []
        # the forecast wants the backward's plan
        keeping = repeats.lightly() if self._keeps_less else nullcontext()
        with functorch_config.patch(force_non_lazy_backward_lowering=True), told(graphs.append), keeping:
            run = backend.ane(gm, example_inputs, options=self._options)
        for compiled in graphs:
            self._take_up(compiled)
        if torch.is_grad_enabled():  # a validation has no backward, so no loss scale
            key = str([tuple(one.shape) for one in example_inputs if isinstance(one, Tensor) and not one.is_floating_point()])
            for compiled in graphs:
                plans = tuple(compiled.plans.values())
                optimizer, states = self.optimizer
                needed = functools.partial(
                    forecast, plans, self._parameters, host_bytes=compiled.host_bytes, optimizer_states=states, result_copies=LOGITS_COPIES,
                    left_bytes=compiled.left_bytes if self.reads_surfaces else 0,
                )
                self.announce(needed(frozen_bytes=self._frozen_bytes).said(optimizer))
                require_fits(needed(param_copies=0), advice=self.advice)  # the weights are in memory already; the rest is to come
                saved = next((one for one in self._restored if one[0] == key), None)
                if saved is not None:  # compiled only now, so the state of the checkpoint is due only now
                    self._restored.remove(saved)
                    compiled.loss_scale = saved[1]
                self._scales.append((key, compiled.loss_scale))
                self._weights.append(compiled.weights)
        return run

    def _take_up(self, compiled: Compiled) -> None:
        """Gives a graph the range control that the checkpoint has of it. A validation's graph is among them: its last
        bits depend on it too. Graphs are told apart by their programs, for a resumed run compiles in another order."""
        if compiled.ranges is None:
            return
        text = "".join(f"{name}\n{program.text}" for name, plan in compiled.plans.items() for program in plan.programs)
        key = hashlib.sha256(text.encode()).hexdigest()
        saved = next((one for one in self._restored_ranges if one[0] == key), None)
        if saved is not None:
            self._restored_ranges.remove(saved)
            try:
                compiled.ranges.restore(saved[1])
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise RunFolderError(f"The checkpoint's ranges are damaged: {error}. Go back to another checkpoint.") from error
        self._ranges.append((key, compiled.ranges))


def _loss_scale(values: Mapping[str, Any]) -> LossScale:
    """Raises TypeError or ValueError for what no loss scale says of itself."""
    scale, fresh = LossScale(**values), LossScale()
    for field in fields(scale):
        if type(getattr(scale, field.name)) is not type(getattr(fresh, field.name)):
            raise TypeError(f"its {field.name} is {shown(getattr(scale, field.name))}")
    if abs(scale.target) > LARGEST_EXPONENT or abs(scale.highest) > LARGEST_EXPONENT:
        raise ValueError(f"its target is 2^{scale.target}, of at most 2^{scale.highest}")
    return scale


def _require_small_numbers(state: Any) -> None:
    """Raises ValueError where something in it is no finite number that fits into 53 bits."""
    if isinstance(state, Mapping | list):
        for value in state.values() if isinstance(state, Mapping) else state:
            _require_small_numbers(value)
    elif isinstance(state, int | float) and not abs(state) <= 2**53:
        raise ValueError(f"a number in it is {shown(state)}")
