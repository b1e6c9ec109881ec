"""How a fine-tuning run looks: the lines that mlx-lm printed before 0.32 drew a table of them, and on a terminal one that moves below them."""

from typing import TextIO

from torchane.cli.progress import LiveReporter, open_reporter
from torchane.cli.streams import LostOutput
from torchane.finetune.loop import TrainReport


class TuneReporter:
    """A reporter of torchane.finetune.loop. `lost`: why nobody can hear it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._inner = open_reporter(stream)

    @property
    def lost(self) -> LostOutput | None:
        return self._inner.lost

    def said(self, text: str) -> None:
        self._inner.said(text)

    def compiling(self) -> None:
        self._inner.compiling()

    def iteration(self, step: int, steps: int, loss: float) -> None:
        if isinstance(self._inner, LiveReporter):
            self._inner.working(f"iteration {step:,} of {steps:,}, loss {loss:.3f}", step, steps)

    def trained(self, report: TrainReport) -> None:
        self.said(
            f"Iter {report.step}: Train loss {report.loss:.3f}, Learning Rate {report.lr:.3e}, It/sec {report.iterations_per_s:.3f}, "
            f"Tokens/sec {report.tokens_per_s:.3f}, Trained Tokens {report.trained_tokens}, Peak mem {report.peak_memory_gb:.3f} GB"
        )

    def validated(self, step: int, loss: float, time_s: float) -> None:
        self.said(f"Iter {step}: Val loss {loss:.3f}, Val took {time_s:.3f}s")

    def saved(self, step: int, path: str) -> None:
        self.said(f"Iter {step}: Saved adapter weights to {path}.")

    def close(self) -> None:
        self._inner.close()
