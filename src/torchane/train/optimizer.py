"""AdamW in one pass over memory: clipping's factor, moments, weight, and the fp16 copy that the next forward's programs read.

    grad x factor ─► exp_avg, exp_avg_sq ─► param (fp32) ─► fp16 in its surface        read and written once each

State and groups are those of torch.optim.AdamW(fused=True), so checkpoints are the same. A weight counts as staged for the next forward where
its surface holds it number for number and PyTorch counted no write since; a write through `.data` or NumPy between an update and the next
forward leaves no trace, so this is for training loops of our own, which make none.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from torchane import native
from torchane.runtime.weights import Weights


class StagingAdamW(torch.optim.AdamW):
    """torch's AdamW for dense float32 parameters, decoupled decay, no amsgrad. weights: whose surfaces are written, asked at each update."""

    def __init__(
        self, groups: Iterable[Mapping[str, Any]], *, lr: float, betas: tuple[float, float], eps: float,
        weights: Callable[[], Sequence[Weights]] = lambda: (),
    ):  # fmt: skip
        super().__init__([dict(group) for group in groups], lr=lr, betas=betas, eps=eps, fused=True)
        self.weights = weights

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
        """The same with every gradient multiplied first; `.grad` stays as it is."""
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

    def _counted(self, param: nn.Parameter) -> int:
        """The number of this update, by the parameter's state, which is made where there is none."""
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        state["step"] += 1
        return int(state["step"].item())

    def _update(
        self, params: Sequence[nn.Parameter], surfaces: Sequence[Weights], group: Mapping[str, Any], step: int, grad_factor: float
    ) -> None:
        found = [next((place for weights in surfaces if (place := weights.place_of(param.data_ptr(), param.numel()))), None) for param in params]
        jobs = []
        for param, place in zip(params, found, strict=True):
            state = self.state[param]
            arrays = (param, param.grad, state["exp_avg"], state["exp_avg_sq"])
            jobs.append((*(one.numpy() for one in arrays if one is not None), None if place is None else place.open()))
        beta1, beta2 = group["betas"]
        native.adamw(
            jobs, step=step, lr=float(group["lr"]), beta1=beta1, beta2=beta2, eps=group["eps"], weight_decay=group["weight_decay"],
            grad_factor=grad_factor,
        )  # fmt: skip
        torch.autograd.graph.increment_version(params)
        for param, place in zip(params, found, strict=True):
            if place is not None:
                place.wrote(param._version)
