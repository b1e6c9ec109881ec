"""How a run looks: a live line on a terminal, plain lines anywhere else.

    step  240/400  loss 1.234  lr 0.0021  61 ms  16,800 tokens/s  0:10 left
Both write to the stream they are given, so that `--json` keeps standard output for its object. Where it cannot be written any
more, a reporter falls silent and says so as `lost`: the run then ends with a checkpoint, and not in the middle of a step.
"""

import time
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from torchane.cli.streams import Drawing, LostOutput, printable
from torchane.train.report import StepReport, ValidationReport

PLAIN_INTERVAL_S = 10.0


class _Reporter:
    """What both have in common. `lost`: what the stream answered when it took no more."""

    def __init__(self) -> None:
        self.lost: LostOutput | None = None

    def _tell(self, write: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        if self.lost is None:
            try:
                write(*arguments, **options)
            except LostOutput as error:
                self.lost = error


class PlainReporter(_Reporter):
    """A line for the first step, the last, and every ten seconds between them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._last_s = -PLAIN_INTERVAL_S
        self._work, self._work_s = "", 0.0

    def said(self, text: str) -> None:
        self._tell(print, text, file=self._stream, flush=True)

    def working(self, what: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if what != self._work or now_s - self._work_s >= PLAIN_INTERVAL_S:
            self.said(work_line(what, done, total))
            self._work, self._work_s = what, now_s

    def compiling(self) -> None:
        self.said("Compiling the model; the first step takes longer.")

    def step(self, report: StepReport) -> None:
        now_s = time.monotonic()
        if report.step == report.steps or now_s - self._last_s >= PLAIN_INTERVAL_S:
            self._last_s = now_s
            self.said(step_line(report))

    def validation(self, report: ValidationReport) -> None:
        self.said(validation_line(report))

    def sample(self, step: int, text: str) -> None:
        self.said(f"{sample_title(step)}\n    {indented(text)}")

    def saved(self, step: int, path: str) -> None:
        pass  # the run folder is named at the start and at the end

    def close(self) -> None:
        pass


class LiveReporter(_Reporter):
    """One line that moves at the bottom; what stays is printed above it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._console = Console(file=Drawing(stream), highlight=False)  # type: ignore[arg-type]
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._tell(self._live.start)

    def said(self, text: str) -> None:
        self._print(text)

    def _print(self, text: str, **look: Any) -> None:
        self._tell(self._console.print, printable(text), markup=False, **look)

    def _show(self, shown: Any) -> None:
        self._tell(self._live.update, shown, refresh=True)

    def working(self, what: str, done: int, total: int) -> None:
        self._show(Text(printable(work_line(what, done, total)), style="dim"))

    def compiling(self) -> None:
        self._show(Text("Compiling the model; the first step takes longer.", style="dim"))

    def step(self, report: StepReport) -> None:
        table = Table.grid(padding=(0, 1))
        table.add_row(ProgressBar(report.steps, report.step, width=20), step_line(report))
        self._show(table)

    def validation(self, report: ValidationReport) -> None:
        self._print(validation_line(report), style="bold")

    def sample(self, step: int, text: str) -> None:
        self._print(sample_title(step), style="dim")
        self._print(f"    {indented(text)}")

    def saved(self, step: int, path: str) -> None:
        pass  # the run folder is named at the start and at the end

    def close(self) -> None:
        self._tell(self._live.stop)


def open_reporter(stream: TextIO) -> PlainReporter | LiveReporter:
    """The live one where the stream is a terminal. Close it when the run is over."""
    return LiveReporter(stream) if stream.isatty() else PlainReporter(stream)


def work_line(what: str, done: int, total: int) -> str:
    share = f" {done / total:.0%}" if 0 < done <= total else ""
    return f"{what[0].upper()}{what[1:]} ...{share}"


def step_line(report: StepReport) -> str:
    width = len(str(report.steps))
    line = f"step {report.step:>{width}}/{report.steps}  loss {report.loss:.3f}  lr {report.lr:.2g}  {report.time_s * 1e3:.0f} ms"
    if report.tokens_per_s is None or report.time_left_s is None:
        return line
    return f"{line}  {report.tokens_per_s:,.0f} tokens/s  {duration(report.time_left_s)} left"


def validation_line(report: ValidationReport) -> str:
    train = "" if report.train_loss is None else f"train loss {report.train_loss:.3f}  "
    floor = "" if report.floor is None else f" (floor {report.floor:.3f})"
    bits = "" if report.bits_per_byte is None else f"  {report.bits_per_byte:.3f} bits per byte{floor}"
    return f"step {report.step}: {train}valid loss {report.valid_loss:.3f}{bits}"


def sample_title(step: int) -> str:
    return "A sample before training:" if step == 0 else f"A sample after {step:,} steps:"


def indented(text: str) -> str:
    return printable(text.strip()).replace("\n", "\n    ")


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
