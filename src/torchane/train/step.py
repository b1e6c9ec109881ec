"""One optimizer step: loss, gradients, clip, update, with the same bits for any number of threads.

    tokens ─► compiled model ─► logits ─► nll of each token ─► loss
                                  └─ backward(1/n each) ─► grads ─► norm ─► AdamW of clipped grads (optimizer.py)

Sums are where threads change the bits. The loss is added up in float64 in a fixed order and never by
torch; the backward starts from the per-token losses, each weighted 1/n, so autograd adds up nothing.
The squares of the gradients are added in a fixed order too, by our own extension. What torch does between (log_softmax,
the embedding's gradient, AdamW) treats each element or row alone: tests/train/test_step.py checks it.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from torchane import native
from torchane.data.batches import IGNORE, Batch
from torchane.errors import NumericsError
from torchane.train.forward import CompiledModel
from torchane.train.optimizer import StagingAdamW
from torchane.train.settings import TrainSettings

Forward = Callable[..., Tensor]
#: Given a name, what is entered while that part of a step runs.
Part = Callable[[str], AbstractContextManager[Any]]


@runtime_checkable
class ComputesLosses(Protocol):
    """A model that may compute the nll of its targets, too."""

    def losses(self, tokens: Tensor, targets: Tensor, *positions: Tensor) -> Tensor | None:
        """tokens, targets and the positions of rows that hold several texts (B, S) -> nll (B * S,) float32; None where logits are to be had instead."""
        ...


#: Tensors of the logits' size that a step holds at once: their gradient takes their place (token_losses).
LOGITS_COPIES = 1


@dataclass(frozen=True)
class StepResult:
    """loss is the mean nll in nats per token, before the update; grad_norm is before clipping."""

    loss: float
    grad_norm: float


def train_step(
    forward: Forward, optimizer: StagingAdamW, batch: Batch, grad_clip: float, part: Part = lambda name: nullcontext()
) -> StepResult:
    """Updates the parameters once. forward: tokens (B, S) -> logits (B, S, V) float32. part: entered around the parts that it names.
    Raises NumericsError, with the parameters untouched, if the loss or a gradient is not a finite number.
    """
    optimizer.zero_grad(set_to_none=True)
    optimizer.begin()
    nll = losses(forward, batch, part)
    loss = fixed_order_sum(nll) / batch.target_count
    if not math.isfinite(loss):
        raise NumericsError(f"the loss is {loss}. Lower --lr, or look for damaged text in the data.")
    with optimizer.reading_surfaces():
        nll.backward(gradient=torch.full_like(nll, 1.0 / batch.target_count))
        with part("clipping"):
            norm = gradient_norm(parameters(optimizer), optimizer.gradient)
        with part("optimizer"):
            optimizer.update(grad_clip / norm if norm > grad_clip else 1.0)
    return StepResult(loss, norm)


def losses(forward: Forward, batch: Batch, part: Part = lambda name: nullcontext()) -> Tensor:
    """The nll of each target, (B * S,) float32 in nats, 0 where it is ignored: from logits, or where the model computes it (EngineModel) without
    a logit for each token of the vocabulary. part: as in train_step."""
    nll = forward.losses(batch.tokens, batch.targets, *batch.more) if isinstance(forward, ComputesLosses) else None
    if nll is not None:
        return nll
    logits = forward(batch.tokens, *batch.more)
    with part("loss"):
        return token_losses(logits, batch.targets)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (B, S, V) of any floats, targets (B, S) -> nll (B * S,) float32 in nats, 0 where a target is ignored."""
    losses: Tensor = _TokenLosses.apply(logits.flatten(0, 1), targets.flatten())  # type: ignore[no-untyped-call]
    return losses


class _TokenLosses(torch.autograd.Function):
    """F.cross_entropy without a reduction. The gradient in the logits takes their place in memory, since each is the largest tensor of a step:
    autograd refuses whoever needs the logits afterwards."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        losses, tops, sums = (torch.empty(len(targets)) for _ in range(3))
        ctx.dtype = logits.dtype
        logits = logits.detach().float().contiguous()
        native.token_losses(losses.numpy(), tops.numpy(), sums.numpy(), logits.numpy(), targets.numpy(), IGNORE)
        ctx.save_for_backward(logits, targets, tops, sums)
        return losses

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor, None]:
        """(softmax - 1 at the target) times the incoming gradient."""
        logits, targets, tops, sums = ctx.saved_tensors
        grad = logits.detach()
        weights = grad_nll.contiguous()
        torch.autograd.graph.increment_version(logits)
        native.token_gradients(grad.numpy(), weights.numpy(), tops.numpy(), sums.numpy(), grad.numpy(), targets.numpy(), IGNORE)
        return grad.to(ctx.dtype), None


def fixed_order_sum(values: Tensor) -> float:
    """The sum in float64, in one order for any number of threads."""
    return float(np.add.reduce(values.detach().numpy(), axis=None, dtype=np.float64))


def gradient_norm(params: Iterable[nn.Parameter], gradient: Callable[[nn.Parameter], Any] = lambda param: param.grad.numpy()) -> float:
    """Of all gradients together, summed in a fixed order. gradient: a parameter's, as native.sum_of_squares takes it.
    Raises NumericsError if it is not a finite number, DeviceError if the extension is not built.
    """
    norm = math.sqrt(native.sum_of_squares([gradient(param) for param in params if param.grad is not None]))
    if not math.isfinite(norm):
        raise NumericsError(f"the norm of the gradients is {norm}. Lower --lr, or look for damaged text in the data.")
    return norm


def adamw(model: nn.Module, settings: TrainSettings, compiled: CompiledModel | None = None) -> StagingAdamW:
    """AdamW; weights that are matrices decay, norms do not. compiled: whose surfaces it stages for."""
    params = list(model.parameters())
    groups = [
        {"params": [param for param in params if param.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [param for param in params if param.ndim < 2], "weight_decay": 0.0},
    ]
    weights = (lambda: ()) if compiled is None else compiled.weights
    on_host = compiled is not None and compiled.device == "twin"
    if compiled is not None:
        compiled.reads_surfaces = True
    return StagingAdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, weights=weights, stages_on_host=on_host)


def parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters in the optimizer's order."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def learning_rate(step: int, settings: TrainSettings) -> float:
    """For step 1, 2, ...: up in a line over the warm-up, then down half a cosine to final_lr_ratio of the peak."""
    warmup = min(settings.warmup_steps, settings.steps // 2)  # a short run still sees its peak
    if step <= warmup:
        return settings.lr * step / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    floor = settings.lr * settings.final_lr_ratio
    return floor + (settings.lr - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
