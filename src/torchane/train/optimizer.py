"""AdamW in one pass over memory: clipping's factor, moments, weight, and the fp16 copy that the next forward's programs read.

    grad x factor ─► exp_avg, exp_avg_sq ─► param (fp32) ─► fp16 in its surface        read and written once each

Within `reading_surfaces` a gradient is read as programs wrote it, fp16 in a surface (runtime/gradients.py), with the bits of the fp32 tensor that it would be.

The moments of a first update are made while the step before it compiles, and their memory is fetched meanwhile.
State and groups are those of torch.optim.AdamW(fused=True), so checkpoints are the same. A weight counts as staged for the next forward where
its surface holds it number for number and PyTorch counted no write since; a write through `.data` or NumPy between an update and the next
forward leaves no trace, so this is for training loops of our own, which make none.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchane import native
from torchane.capture.torch_private import has_hooks
from torchane.native import pages
from torchane.runtime.gradients import Gradient, Piece, gradient_at
from torchane.runtime.weights import FP32, Place, Weights


class StagingAdamW(torch.optim.AdamW):
    """torch's AdamW for dense float32 parameters, decoupled decay, no amsgrad. weights: whose surfaces are written, asked at each update.
    stages_on_host: surfaces are the host's own memory."""

    def __init__(
        self, groups: Iterable[Mapping[str, Any]], *, lr: float, betas: tuple[float, float], eps: float,
        weights: Callable[[], Sequence[Weights]] = lambda: (), stages_on_host: bool = False,
    ):  # fmt: skip
        super().__init__([dict(group) for group in groups], lr=lr, betas=betas, eps=eps, fused=True)
        self.weights = weights
        self._stages_on_host = stages_on_host
        self._to_come: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        self._fetching: pages.Fetching | None = None

    def begin(self) -> None:
        """An update follows: moments that are not there yet get memory, which a thread of its own fetches until then, after that of the surfaces which a first
        forward stages weights in."""
        params = [param for group in self.param_groups for param in group["params"] if param.requires_grad and not self.state.get(param)]
        if params and not self._to_come:
            self._to_come = {param: (_zeros_like(param), _zeros_like(param)) for param in params}
            staged = pages.reserve(sum(2 * param.numel() for param in params if 2 * param.numel() >= pages.LARGE_BYTES)) if self._stages_on_host else None
            moments = [moment.numpy() for both in self._to_come.values() for moment in both]
            self._fetching = pages.Fetching(moments if staged is None else [staged, *moments])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update with the gradients as they are. Raises DeviceError for a parameter that is not dense float32."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update()
        return loss

    @torch.no_grad()
    def update(self, grad_factor: float = 1.0) -> None:
        """The same with every gradient multiplied first; `.grad` stays as it is, but for one that lies in a surface, which is gone."""
        if self._fetching is not None:
            self._fetching.finish()
            pages.drop_reserve()
        with ExitStack() as held:
            surfaces = sorted(self.weights(), key=lambda weights: -weights.latest)  # of several graphs, the one that ran last
            for weights in surfaces:
                held.enter_context(weights.lock)
            for group in self.param_groups:
                by_step: defaultdict[int, list[nn.Parameter]] = defaultdict(list)
                for param in group["params"]:
                    if param.grad is not None:
                        by_step[self._counted(param)].append(param)
                for step, params in by_step.items():
                    self._update(params, surfaces, group, step, grad_factor)
        self._to_come, self._fetching = {}, None

    @contextmanager
    def reading_surfaces(self) -> Iterator[None]:
        """Within it a backward may leave in `.grad` what only `gradient` and `update` understand; none of it is left afterwards. Parameters that
        have hooks get theirs as ever."""
        params = [param for group in self.param_groups for param in group["params"]]
        if not self.weights() or any(has_hooks(param) for param in params):
            yield
            return
        with ExitStack() as held:
            for weights in self.weights():
                held.enter_context(weights.gradients.wanted())
            for param in params:
                param.grad_dtype = None  # any
            try:
                yield
            finally:
                for param in params:
                    if param.grad is not None and param.grad.dtype is torch.float16:
                        param.grad = None
                    param.grad_dtype = param.dtype

    def gradient(self, param: nn.Parameter) -> np.ndarray | list[Piece]:
        """As native.adamw and native.sum_of_squares take it: fp32, or pieces of which some lie in a surface, fp16 and multiplied by something."""
        found = self._in_surface(param)
        assert param.grad is not None
        return param.grad.numpy() if found is None else found.pieces()

    def _in_surface(self, param: nn.Parameter) -> Gradient | None:
        grad = param.grad
        if grad is None or grad.dtype is not torch.float16:
            return None
        found = gradient_at(grad.data_ptr())
        assert found is not None and grad.is_contiguous() and grad._version == 0, "a gradient in fp16 whose scale is not known"
        return found

    def _counted(self, param: nn.Parameter) -> int:
        """The number of this update, by the parameter's state, which is made where there is none."""
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = self._to_come.pop(param, None) or (_zeros_like(param), _zeros_like(param))
        state["step"] += 1
        return int(state["step"].item())

    def _update(
        self, params: Sequence[nn.Parameter], surfaces: Sequence[Weights], group: Mapping[str, Any], step: int, grad_factor: float
    ) -> None:
        jobs, found = [], []
        for param in params:
            there = self._in_surface(param)
            of_each = (weights.places_of(param.data_ptr(), param.numel(), there) for weights in surfaces)
            places: list[Place] = next(filter(None, of_each), []) if param.is_contiguous() else []
            jobs += self._jobs(param, there, places)
            found.append(places)
        beta1, beta2 = group["betas"]
        native.adamw(
            jobs, step=step, lr=float(group["lr"]), beta1=beta1, beta2=beta2, eps=group["eps"], weight_decay=group["weight_decay"],
            grad_factor=grad_factor,
        )  # fmt: skip
        torch.autograd.graph.increment_version(params)
        for param, places in zip(params, found, strict=True):
            for place in places:
                place.wrote(param._version)
            if param.grad is not None and param.grad.dtype is torch.float16:
                param.grad = None

    def _jobs(self, param: nn.Parameter, gradient: Gradient | None, places: Sequence[Place]) -> list[tuple[Any, ...]]:
        """As native.adamw takes them: one for each place, and one for what lies between two."""
        state, grad = self.state[param], param.grad
        assert grad is not None
        arrays = param.numpy(), state["exp_avg"].numpy(), state["exp_avg_sq"].numpy()
        if not places:
            return [(arrays[0], grad.numpy() if gradient is None else gradient.pieces(), *arrays[1:], None)]
        weight, exp_avg, exp_avg_sq = (array.reshape(-1) for array in arrays)
        cuts: list[tuple[int, int, Place | None]] = []
        end = 0
        for place in places:
            begin = (place.address - param.data_ptr()) // FP32
            cuts += [(end, begin, None), (begin, end := begin + place.size, place)]
        cuts.append((end, param.numel(), None))
        jobs = []
        for begin, end, where in cuts:
            if begin < end:
                part = grad.numpy().reshape(-1)[begin:end] if gradient is None else gradient.pieces(begin, end)
                jobs.append((weight[begin:end], part, exp_avg[begin:end], exp_avg_sq[begin:end], None if where is None else where.open()))
        return jobs

def _zeros_like(param: nn.Parameter) -> Tensor:
    """In memory that nothing has touched."""
    return torch.from_numpy(pages.zeros(tuple(param.shape)))
