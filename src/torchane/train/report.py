"""What a run tells while it runs; who listens decides how it looks."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class StepReport:
    """One optimizer step. time_s is the step alone, without validation and saving. tokens_per_s and time_left_s are None for
    the first step of a process, most of whose time is compiling.
    """

    step: int
    steps: int
    loss: float
    lr: float
    grad_norm: float
    time_s: float
    tokens_per_s: float | None
    time_left_s: float | None

    def metrics(self) -> dict[str, Any]:
        names = ("step", "loss", "lr", "grad_norm", "time_s")
        return {"kind": "step", **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class ValidationReport:
    """Losses in nats per token; train_loss is the mean since the last validation, None before the first step.
    bits_per_byte is None where nobody knows how many bytes a token stands for.
    floor is the least bits per byte that any model can reach on this text, where it is known.
    """

    step: int
    train_loss: float | None
    valid_loss: float
    bits_per_byte: float | None
    floor: float | None

    def metrics(self) -> dict[str, Any]:
        return {"kind": "validation", **asdict(self)}


@dataclass(frozen=True)
class TrainResult:
    """What a run came to. tokens_per_s is the median step's, without the first of a process; None if there was no other."""

    steps: int
    train_loss: float | None
    valid_loss: float
    bits_per_byte: float | None
    floor: float | None
    tokens_per_s: float | None
    interrupted: bool


class Reporter(Protocol):
    """The listener. Calls come from the training loop, in the order of events."""

    def compiling(self) -> None: ...

    def step(self, report: StepReport) -> None: ...

    def validation(self, report: ValidationReport) -> None: ...

    def sample(self, step: int, text: str) -> None: ...

    def saved(self, step: int, path: str) -> None: ...
