"""The fine-tuning loop: iterations, reports, validation, checkpoints, from an iteration to the last or to a stop.

    batch(iteration) ─► compiled model ─► nll of each token ─► mean over those that count ─► gradients ─► every Nth time an update

A batch and the masks of dropout are functions of seed and iteration, and every number that the next iteration depends on is in
the checkpoint, so a run that is stopped or killed and resumed ends with the bits of one that was not.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchane import native
from torchane.data.batches import Batch
from torchane.errors import NumericsError
from torchane.finetune.adapters import is_adapted, trained
from torchane.finetune.batches import Batches, fixed_batches
from torchane.finetune.data import Example
from torchane.finetune.folder import AdapterFolder, TuneState
from torchane.finetune.optimizers import Schedule
from torchane.finetune.settings import LoraSettings
from torchane.train.forward import CompiledModel
from torchane.train.loop import drawing_from, evaluating
from torchane.train.step import fixed_order_sum, losses


class Logits(nn.Module):
    """A causal model of transformers as a function: tokens int64 (B, S) -> logits float32 (B, S, V). positions, int64 (B, S), of rows of several
    examples: where they begin anew, an example does, and transformers' masks part it from the others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = getattr(model, "config", None)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        placed = {} if positions is None else {"position_ids": positions}
        logits: Tensor = self.model(input_ids=tokens, use_cache=False, **placed).logits
        return logits.float()


@dataclass(frozen=True)
class TrainReport:
    """Of the iterations since the last one. loss: nats per token, the mean of theirs."""

    step: int
    loss: float
    lr: float
    iterations_per_s: float
    tokens_per_s: float
    trained_tokens: int
    peak_memory_gb: float


@dataclass(frozen=True)
class TuneResult:
    """What a run came to. Losses are None where nothing was measured."""

    iters: int
    train_loss: float | None
    valid_loss: float | None
    trained_tokens: int
    interrupted: bool


class Reporter(Protocol):
    """The listener. Calls come from the loop, in the order of events."""

    def compiling(self) -> None: ...

    def iteration(self, step: int, steps: int, loss: float) -> None: ...

    def trained(self, report: TrainReport) -> None: ...

    def validated(self, step: int, loss: float, time_s: float) -> None: ...

    def saved(self, step: int, path: str) -> None: ...


@dataclass
class Tuner:
    """One run. `state` says where it stands; `run` takes it to the last iteration. lengths: what validation's batches are padded to. dtype: that of a whole model's files."""

    model: nn.Module
    compiled: CompiledModel
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    batches: Batches
    valid: Sequence[Example]
    lengths: Sequence[int]
    settings: LoraSettings
    folder: AdapterFolder
    reporter: Reporter
    dtype: torch.dtype | None = None
    state: TuneState = field(default_factory=TuneState)
    saved_step: int | None = None

    def resume(self) -> list[str]:
        """Goes back to the folder's checkpoint, and says what was mended. Raises RunFolderError."""
        self.folder.metrics.check_metrics()
        self.folder.clear_leftovers()
        state = self.folder.load(self.model, self.optimizer)
        mended = [self.folder.metrics.repair_metrics(-1 if state is None else state.step)]
        if state is None:
            return [f"{self.folder.path} has no checkpoint yet: it begins anew.", *filter(None, mended)]
        self.state, self.saved_step = state, state.step
        self.compiled.restore(state.backend)
        self._publish_again()
        return list(filter(None, mended))

    def _publish_again(self) -> None:
        """What others read, as of the checkpoint: a crash may have come before it."""
        self.folder.publish(self.model, self.dtype)
        if is_adapted(self.model) and self.state.step % self.settings.save_every == 0:
            self.folder.keep_copy(self.state.step)

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> TuneResult:
        """Trains until the last iteration or until should_stop(), and saves. Raises NumericsError where training has gone wrong; the
        checkpoint written last is good then."""
        settings, state = self.settings, self.state
        if state.step < settings.iters:
            self.reporter.compiling()
        self.model.train()
        valid_loss = self.validate() if self.saved_step is None else None
        train_loss, time_s = None, 0.0
        while state.step < settings.iters and not should_stop():
            time_s += self.step()
            last = state.step == settings.iters
            if last or state.step % settings.steps_per_report == 0:
                train_loss, time_s = self.report(time_s), 0.0
            if last or state.step % settings.steps_per_eval == 0:
                valid_loss = self.validate()
            if not last and state.step % settings.save_every == 0:
                self.save(with_copy=True)
        if self.saved_step != state.step:
            self.save(with_copy=state.step % settings.save_every == 0)
        return TuneResult(state.step, train_loss, valid_loss, state.trained_tokens, state.step < settings.iters)

    def step(self) -> float:
        """One iteration; its time in seconds."""
        state, settings, iteration = self.state, self.settings, self.state.step
        batch = self.batches.batch(iteration)
        lr = self.schedule(state.updates)
        start = time.perf_counter()
        try:
            with drawing_from(settings.seed, iteration + 1):
                loss = accumulate(self.compiled, batch, settings.grad_accumulation_steps)
            updates = (iteration + 1) % settings.grad_accumulation_steps == 0
            norm = self._update(lr) if updates else None
        except NumericsError as error:
            raise NumericsError(f"iteration {iteration + 1}: {error} {self.last_checkpoint()}") from error
        time_s = time.perf_counter() - start
        state.step, state.updates = iteration + 1, state.updates + updates
        state.losses, state.tokens = [*state.losses, loss], state.tokens + batch.target_count
        row = {"kind": "step", "step": state.step, "loss": loss, "lr": lr, "grad_norm": norm, "tokens": batch.target_count, "time_s": time_s}
        self.folder.metrics.append_metrics(row)
        self.reporter.iteration(state.step, settings.iters, loss)
        return time_s

    def _update(self, lr: float) -> float:
        """Moves the weights; the norm of their gradients. Raises NumericsError, with the weights untouched."""
        grads = [param.grad.numpy() for param in trained(self.model).values() if param.grad is not None]
        norm = math.sqrt(native.sum_of_squares(grads))
        if not math.isfinite(norm):
            raise NumericsError(f"the norm of the gradients is {norm}. Lower --learning-rate, or look for damaged text in the data.")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def report(self, time_s: float) -> float:
        """Tells the mean loss since the last report. time_s: of the iterations of this process since then."""
        state = self.state
        loss, count = math.fsum(state.losses) / len(state.losses), len(state.losses)
        state.trained_tokens += state.tokens
        self.reporter.trained(TrainReport(
            state.step, loss, self.schedule(max(0, state.updates - 1)), count / time_s, state.tokens / time_s, state.trained_tokens, peak_memory_gb()
        ))  # fmt: skip
        state.losses, state.tokens = [], 0
        return loss

    def validate(self) -> float | None:
        """The mean nll over the tokens of val_batches batches; None where there is nothing to validate on. Raises NumericsError."""
        if not self.valid:
            return None
        start = time.perf_counter()
        settings = self.settings
        batches = fixed_batches(self.valid, batch_size=settings.batch_size, lengths=self.lengths, most=settings.val_batches)
        loss, _ = mean_loss(self.model, self.compiled, batches)
        if not math.isfinite(loss):
            raise NumericsError(f"iteration {self.state.step}: the validation loss is {loss}. Lower --learning-rate. {self.last_checkpoint()}")
        self.folder.metrics.append_metrics({"kind": "validation", "step": self.state.step, "valid_loss": loss})
        self.reporter.validated(self.state.step, loss, time.perf_counter() - start)
        return loss

    def save(self, *, with_copy: bool) -> None:
        self.state.backend = self.compiled.state()
        self.folder.save(self.model, self.optimizer, self.state, self.dtype)
        if with_copy and is_adapted(self.model):
            self.folder.keep_copy(self.state.step)
        self.saved_step = self.state.step
        self.reporter.saved(self.state.step, str(self.folder.path))

    def last_checkpoint(self) -> str:
        if self.saved_step is None:
            return "Nothing was saved yet."
        return f"The checkpoint of iteration {self.saved_step} in {self.folder.path} is good."


def accumulate(forward: Callable[..., Tensor], batch: Batch, parts: int) -> float:
    """Adds the gradient of the batch's mean loss, divided by `parts`, to the gradients; the loss in nats per token.
    Raises NumericsError, with the gradients untouched, where it is not finite.
    """
    nll = losses(forward, batch)
    loss = fixed_order_sum(nll) / batch.target_count
    if not math.isfinite(loss):
        raise NumericsError(f"the loss is {loss}. Lower --learning-rate, or look for damaged text in the data.")
    nll.backward(gradient=torch.full_like(nll, 1.0 / (batch.target_count * parts)))
    return loss


@torch.no_grad()
def mean_loss(model: nn.Module, forward: Callable[..., Tensor], batches: Iterable[Batch]) -> tuple[float, int]:
    """The mean nll of all targets of the batches, in nats, without dropout; and how many they are."""
    total, count = 0.0, 0
    with evaluating(model):
        for batch in batches:
            total += fixed_order_sum(losses(forward, batch))
            count += batch.target_count
    return total / max(count, 1), count


def peak_memory_gb() -> float:
    """The most memory that this process has had, in 10^9 bytes."""
    most: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e9
