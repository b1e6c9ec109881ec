"""What a run looks like, on a terminal and elsewhere."""

import io
from dataclasses import replace

import pytest

from torchane.cli.progress import LiveReporter, PlainReporter, duration, open_reporter, step_line, validation_line
from torchane.cli.streams import LostOutput
from torchane.train.report import StepReport, ValidationReport

STEP = StepReport(step=7, steps=400, loss=1.23456, lr=0.0021, grad_norm=0.5, time_s=0.0612, tokens_per_s=16_800.4,
                  time_left_s=24.4)  # fmt: skip
LAST = StepReport(step=400, steps=400, loss=1.0, lr=0.0003, grad_norm=0.5, time_s=0.06, tokens_per_s=16_800.4,
                  time_left_s=0.0)  # fmt: skip
VALID = ValidationReport(step=100, train_loss=1.5, valid_loss=1.4, bits_per_byte=0.8, floor=0.306)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_step_is_one_line():
    assert step_line(STEP) == "step   7/400  loss 1.235  lr 0.0021  61 ms  16,800 tokens/s  0:24 left"


def test_the_first_step_compiles_and_foretells_nothing():
    first = replace(STEP, tokens_per_s=None, time_left_s=None)
    assert step_line(first) == "step   7/400  loss 1.235  lr 0.0021  61 ms"


def test_a_validation_without_bytes_has_its_loss():
    assert validation_line(replace(VALID, bits_per_byte=None, floor=None)) == "step 100: train loss 1.500  valid loss 1.400"


@pytest.mark.parametrize("kind", [io.StringIO, lambda: Terminal()], ids=["plain", "terminal"])
def test_a_sample_cannot_give_orders_to_a_terminal(kind):
    stream = kind()
    reporter = open_reporter(stream)
    reporter.sample(0, "a\x1b]0;title\x07b")
    reporter.close()
    assert "a\\x1b]0;title\\x07b" in stream.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stream_that_takes_no_more_makes_a_reporter_silent(terminal):
    class Full(io.StringIO):
        def isatty(self):
            return terminal

        def write(self, text):
            raise LostOutput(OSError(28, "No space left on device"))

    reporter = open_reporter(Full())
    reporter.said("a")
    reporter.validation(VALID)
    reporter.step(STEP)
    reporter.close()
    assert isinstance(reporter.lost, LostOutput)


def test_a_validation_is_one_line_with_the_floor_where_it_is_known():
    assert validation_line(VALID) == "step 100: train loss 1.500  valid loss 1.400  0.800 bits per byte (floor 0.306)"
    first = ValidationReport(step=0, train_loss=None, valid_loss=6.2, bits_per_byte=3.7, floor=None)
    assert validation_line(first) == "step 0: valid loss 6.200  3.700 bits per byte"


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3723, "1:02:03")])
def test_durations_are_clock_times(seconds, shown):
    assert duration(seconds) == shown


def test_plain_lines_show_the_first_and_the_last_step_and_not_every_other():
    stream = io.StringIO()
    reporter = open_reporter(stream)
    assert isinstance(reporter, PlainReporter)
    for report in (STEP, STEP, STEP, LAST):
        reporter.step(report)
    reporter.validation(VALID)
    reporter.sample(400, " Once\nupon ")
    reporter.close()
    assert stream.getvalue() == (
        f"{step_line(STEP)}\n{step_line(LAST)}\n{validation_line(VALID)}\nA sample after 400 steps:\n    Once\n    upon\n"
    )


def test_long_work_is_named_once_and_again_with_its_share_when_it_takes_long(monkeypatch):
    now = iter([0.0, 1.0, 11.0, 12.0])
    monkeypatch.setattr("torchane.cli.progress.time.monotonic", lambda: next(now))
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    for what, done in (("training the tokenizer", 0), ("encoding", 10), ("encoding", 40), ("encoding", 50)):
        reporter.working(what, done, 100)
    assert stream.getvalue() == "Training the tokenizer ...\nEncoding ... 10%\nEncoding ... 40%\n"
    reporter = LiveReporter(terminal := Terminal())
    reporter.working("encoding", 40, 100)
    reporter.close()
    assert "Encoding ... 40%" in terminal.getvalue()


def test_a_terminal_keeps_what_stays_and_square_brackets_are_text():
    stream = Terminal()
    reporter = open_reporter(stream)
    assert isinstance(reporter, LiveReporter)
    reporter.compiling()
    reporter.step(STEP)
    reporter.validation(VALID)
    reporter.sample(0, "a [red] fox [/")
    reporter.close()
    shown = stream.getvalue()
    assert "step   7/400" in shown and "valid loss 1.400" in shown and "a [red] fox [/" in shown
