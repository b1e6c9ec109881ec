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
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from torchane import native
from torchane.data.batches import IGNORE, Batch
from torchane.errors import NumericsError
from torchane.native import pages
from torchane.train.forward import CompiledModel
from torchane.train.optimizer import StagingAdamW
from torchane.train.settings import TrainSettings

Forward = Callable[[Tensor], Tensor]
#: Given a name, what is entered while that part of a step runs.
Part = Callable[[str], AbstractContextManager[Any]]

@runtime_checkable
class ComputesLosses(Protocol):
    """A model that may compute the nll of its targets, too."""

    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor | None:
        """tokens, targets (B, S) -> nll (B * S,) float32; None where logits are to be had instead."""
        ...


#: Tensors of the logits' size that a step holds at once: them and their gradient (token_losses).
LOGITS_COPIES = 2


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
    nll = losses(forward, batch, part)
    loss = fixed_order_sum(nll) / batch.target_count
    if not math.isfinite(loss):
        raise NumericsError(f"the loss is {loss}. Lower --lr, or look for damaged text in the data.")
    nll.backward(gradient=torch.full_like(nll, 1.0 / batch.target_count))
    with part("clipping"):
        norm = gradient_norm(parameters(optimizer))
    with part("optimizer"):
        optimizer.update(grad_clip / norm if norm > grad_clip else 1.0)
    return StepResult(loss, norm)


def losses(forward: Forward, batch: Batch, part: Part = lambda name: nullcontext()) -> Tensor:
    """The nll of each target, (B * S,) float32 in nats, 0 where it is ignored: from logits, or where the model computes it (EngineModel) without
    a logit for each token of the vocabulary. part: as in train_step."""
    nll = forward.losses(batch.tokens, batch.targets) if isinstance(forward, ComputesLosses) else None
    if nll is not None:
        return nll
    logits = forward(batch.tokens)
    with part("loss"):
        return token_losses(logits, batch.targets)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (B, S, V), targets (B, S) -> nll (B * S,) float32 in nats, 0 where a target is ignored."""
    losses: Tensor = _TokenLosses.apply(logits.flatten(0, 1), targets.flatten())  # type: ignore[no-untyped-call]
    return losses


class _TokenLosses(torch.autograd.Function):
    """F.cross_entropy without a reduction, some rows at a time: only logits and their gradient are ever whole.

    The log-probabilities that torch would keep, and the gradient in them, are each as large as the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        blocks = zip(logits.split(_rows(logits)), targets.split(_rows(logits)), strict=True)
        return torch.cat([F.cross_entropy(*block, reduction="none", ignore_index=IGNORE) for block in blocks])

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor, None]:
        """(softmax - 1 at the target) times the incoming gradient."""
        logits, targets = ctx.saved_tensors
        weights = grad_nll.masked_fill(targets == IGNORE, 0.0)[:, None]
        places = targets.masked_fill(targets == IGNORE, 0)[:, None]
        grad = torch.from_numpy(pages.empty(logits.shape))
        for begin in range(0, len(logits), _rows(logits)):
            rows = slice(begin, begin + _rows(logits))
            torch.softmax(logits[rows], -1, out=grad[rows])
            grad[rows].mul_(weights[rows]).scatter_add_(1, places[rows], -weights[rows])
        return grad, None


def _rows(logits: Tensor) -> int:
    """How many are looked at together: 4 MiB of them, so that what is derived from them stays in the caches."""
    return max(1, (1 << 20) // logits.shape[1])


def fixed_order_sum(values: Tensor) -> float:
    """The sum in float64, in one order for any number of threads."""
    return float(np.add.reduce(values.detach().numpy(), axis=None, dtype=np.float64))


def gradient_norm(params: Iterable[nn.Parameter]) -> float:
    """Of all gradients together, summed in a fixed order.
    Raises NumericsError if it is not a finite number, DeviceError if the extension is not built.
    """
    norm = math.sqrt(native.sum_of_squares([param.grad.numpy() for param in params if param.grad is not None]))
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
    return StagingAdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, weights=weights)


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
