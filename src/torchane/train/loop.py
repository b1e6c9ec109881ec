"""The training loop: steps, validation, samples, checkpoints, from a step to the last or to a stop.

    for step in ...:  batch(seed, step) ─► train_step ─► metrics ─► now and then: validation, checkpoint

A batch and the masks of dropout are functions of the seed and the step alone, so a run that is stopped and
resumed sees those of one that was not. Validation and samples are without dropout.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import nn

from torchane.data.batches import Batch
from torchane.errors import NumericsError, UsageError
from torchane.models.build import CausalLM
from torchane.train.checkpoint import TrainState
from torchane.train.forward import CompiledModel
from torchane.train.report import Reporter, StepReport, TrainResult, ValidationReport
from torchane.train.run_folder import RunFolder
from torchane.train.settings import TrainSettings
from torchane.train.step import fixed_order_sum, learning_rate, losses, set_learning_rate, train_step

RECENT_STEPS = 50  # how many step times the time left is estimated from


class Batches(Protocol):
    """Training batches by step, counted from 0; the fixed batches of validation; and the least bits per byte
    that any model can reach on those, where it is known.
    """

    floor: float | None

    def train(self, step: int) -> Batch: ...

    def valid(self) -> Iterable[Batch]: ...


@dataclass
class Trainer:
    """One run. `state` says where it stands; `run` takes it to the last step."""

    model: CausalLM
    compiled: CompiledModel
    optimizer: torch.optim.AdamW
    batches: Batches
    settings: TrainSettings
    folder: RunFolder
    reporter: Reporter
    sample: Callable[[CausalLM], str] | None  # None where there is no tokenizer
    state: TrainState = field(default_factory=TrainState)
    saved_step: int | None = None

    def resume(self) -> list[str]:
        """Goes back to the folder's checkpoint, or to the start where the run ended before its first, and says what was mended.
        Raises RunFolderError, with the trainer as it was, UsageError where the checkpoint is beyond the last step.
        """
        self.folder.check_metrics()  # what cannot be mended shows before anything is changed
        if not self.folder.has_checkpoint():
            mended = [self.folder.repair_metrics(-1)]
            return [f"{self.folder.path} has no checkpoint yet: it begins anew.", *filter(None, mended)]
        self.state = self.folder.load(self.model, self.optimizer)
        self.compiled.restore(self.state.backend)
        step = self.saved_step = self.state.step
        if step > self.settings.steps:
            raise UsageError(f"{self.folder.path} is at step {step} already; --steps {self.settings.steps} is behind it.")
        mended = [self.folder.repair_metrics(step)]
        if self.folder.renew_weights(self.model, step):
            mended.append(f"{self.folder.path}: the model file was not of step {step} and was written again from the checkpoint.")
        return list(filter(None, mended))

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> TrainResult:
        """Trains until the last step or until should_stop(), saves, and says what came of it.
        Raises NumericsError where training has gone wrong, RunFolderError where it cannot be saved; the
        checkpoint written last is good in either case.
        """
        self.reporter.compiling()
        validation: ValidationReport | None = None
        if self.saved_step is None:  # a new run
            validation = self.record(self.validate())
            self.report_sample()
        times: deque[float] = deque(maxlen=RECENT_STEPS)
        compiled = False
        while self.state.step < self.settings.steps and not should_stop():
            report = self.step(times)
            self.folder.append_metrics(report.metrics())
            self.reporter.step(report)
            if compiled:  # the first step's time says little about the others
                times.append(report.time_s)
            compiled = True
            last = self.state.step == self.settings.steps
            if last or self.state.step % self.settings.eval_interval == 0:
                validation = self.record(self.validate())
                self.state.recent_losses.clear()
            if last or self.state.step % self.settings.checkpoint_interval == 0:
                self.save()
        interrupted = self.state.step < self.settings.steps
        if self.saved_step != self.state.step:
            self.save()
        if validation is None:  # stopped before one was due, so its metrics have no line of it
            validation = self.validate()
            self.reporter.validation(validation)
        if not interrupted:
            self.report_sample()
        typical_s = statistics.median(times) if times else None
        return TrainResult(
            steps=self.state.step,
            train_loss=validation.train_loss,
            valid_loss=validation.valid_loss,
            bits_per_byte=validation.bits_per_byte,
            floor=validation.floor,
            tokens_per_s=self.settings.tokens_per_step / typical_s if typical_s else None,
            interrupted=interrupted,
        )

    def step(self, recent: Sequence[float]) -> StepReport:
        """One optimizer step; `recent` are the times of the steps before it, in seconds."""
        step = self.state.step + 1
        lr = learning_rate(step, self.settings)
        set_learning_rate(self.optimizer, lr)
        batch = self.batches.train(step - 1)
        start = time.perf_counter()
        try:
            with drawing_from(self.settings.seed, step):
                result = train_step(self.compiled, self.optimizer, batch, self.settings.grad_clip)
        except NumericsError as error:
            raise NumericsError(f"step {step}: {error} {self.last_checkpoint()}") from error
        time_s = time.perf_counter() - start
        self.state.step = step
        self.state.recent_losses.append(result.loss)
        typical = statistics.median(recent) if recent else None  # the first step compiles: it says nothing of the others
        return StepReport(
            step=step,
            steps=self.settings.steps,
            loss=result.loss,
            lr=lr,
            grad_norm=result.grad_norm,
            time_s=time_s,
            tokens_per_s=self.settings.tokens_per_step / typical if typical else None,
            time_left_s=statistics.fmean(recent) * (self.settings.steps - step) if recent else None,
        )

    @torch.no_grad()
    def validate(self) -> ValidationReport:
        """The mean nll over all of the validation batches, and the same as bits per byte of their text.
        Raises NumericsError if it is not a finite number.
        """
        nll, count, size_bytes = 0.0, 0, 0
        with evaluating(self.model):
            for batch in self.batches.valid():
                nll += fixed_order_sum(losses(self.compiled, batch))
                count += batch.target_count
                size_bytes += batch.target_bytes
        if not math.isfinite(nll):
            raise NumericsError(
                f"step {self.state.step}: the validation loss is {nll}. Lower --lr. {self.last_checkpoint()}"
            )
        recent = self.state.recent_losses
        return ValidationReport(
            step=self.state.step,
            train_loss=math.fsum(recent) / len(recent) if recent else None,
            valid_loss=nll / count,
            bits_per_byte=nll / math.log(2) / size_bytes if size_bytes else None,
            floor=self.batches.floor,
        )

    def record(self, validation: ValidationReport) -> ValidationReport:
        self.folder.append_metrics(validation.metrics())
        self.reporter.validation(validation)
        return validation

    def report_sample(self) -> None:
        if self.sample is None:
            return
        with evaluating(self.model):
            self.reporter.sample(self.state.step, self.sample(self.model))

    def save(self) -> None:
        self.state.backend = self.compiled.state()
        self.folder.save(self.model, self.optimizer, self.state)
        self.saved_step = self.state.step
        self.reporter.saved(self.state.step, str(self.folder.path))

    def last_checkpoint(self) -> str:
        """Where a run that went wrong can be taken up again."""
        if self.saved_step is None:
            return "Nothing was saved yet."
        return f"The checkpoint of step {self.saved_step} in {self.folder.path} is good."


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout is off inside."""
    model.eval()
    try:
        yield
    finally:
        model.train()


@contextmanager
def drawing_from(seed: int, step: int) -> Iterator[None]:
    """Inside, torch draws numbers that depend on seed and step alone; its own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]))
        yield
