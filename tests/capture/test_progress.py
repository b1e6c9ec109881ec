"""What is said while compiling: what PyTorch will run before anything is lowered, and a line where it takes long."""

import re
import time
import warnings

import pytest
import torch
from capture_helpers import compile_for_twin
from torch import nn

from torchane import passes
from torchane.capture import progress
from torchane.capture.progress import Progress
from torchane.errors import TorchaneWarning


class WithSort(nn.Module):
    """Products, and an op that no program holds."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.out = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.map(x.sort(-1).values).tanh())


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_what_pytorch_will_run_is_said_before_anything_is_lowered(monkeypatch) -> None:
    order: list[str] = []
    lower = passes.lower

    def recording(*args, **kwargs):
        order.append("lowered")
        return lower(*args, **kwargs)

    monkeypatch.setattr(passes, "lower", recording)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_: order.append(str(message)))
        compile_for_twin(WithSort())(torch.randn(4, 16))
    assert "aten.sort" in order[0]
    assert "lowered" in order[1:]
    assert sum("aten.sort" in said for said in order) == 1


def test_nothing_is_said_of_a_short_compilation(clock, capsys) -> None:
    told = Progress("forward", clock[0], True)
    clock[0] += 4.9
    told.lowered()
    assert capsys.readouterr() == ("", "")


def test_while_a_step_is_planned_the_plan_waits_and_no_program_is_loaded(clock, capsys) -> None:
    told = Progress("backward", clock[0], True)
    clock[0] = 106
    with progress.planning():
        told.loaded(1, 6)
        told.lowered()
    assert capsys.readouterr().err == "torchane: compiling the backward, 6 s so far: 1 of at most 1 programs. The plan waits for it.\n"
    clock[0] = 120
    told.loaded(1, 6)
    assert capsys.readouterr().err.endswith("1 of 6 programs loaded. The first step waits for it.\n")


def test_a_line_after_five_seconds_and_one_every_ten(clock, capsys) -> None:
    told = Progress("backward", clock[0], True)
    for seconds in (2, 6, 9, 15.9, 16.1, 20):
        clock[0] = 100 + seconds
        told.lowered()
    clock[0] = 127
    told.loaded(3, 6)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "torchane: compiling the backward, 6 s so far: 2 of at most 2 programs. The first step waits for it.",
        "torchane: compiling the backward, 16 s so far: 5 of at most 5 programs. The first step waits for it.",
        "torchane: compiling the backward, 27 s so far: 3 of 6 programs loaded. The first step waits for it.",
    ]


def test_a_compilation_that_takes_long_is_said_to_go_on(monkeypatch, capfd) -> None:
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    torch._dynamo.reset()
    compile_for_twin(nn.Linear(16, 32))(torch.randn(4, 16))
    assert re.search(r"compiling the forward, \d+ s so far: 1 of at most 1 programs", capfd.readouterr().err)


def test_quiet_is_respected(monkeypatch, capfd) -> None:
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    torch._dynamo.reset()
    compile_for_twin(nn.Linear(16, 32), progress="off")(torch.randn(4, 16))
    assert "compiling" not in capfd.readouterr().err


def test_what_had_no_legal_form_is_said_as_more(monkeypatch) -> None:
    """The second warning is of the op that lowering refused, and does not repeat the first."""
    lower = passes.lower

    def refusing(program, *args, **kwargs):
        if any(op.kind.name == "tanh" for op in program.ops):
            raise passes.CompileError("tanh has no form here")
        return lower(program, *args, **kwargs)

    monkeypatch.setattr(passes, "lower", refusing)
    torch._dynamo.reset()
    with pytest.warns(TorchaneWarning) as said, torch.no_grad():
        compile_for_twin(WithSort())(torch.randn(4, 16))
    texts = [str(one.message) for one in said if "PyTorch on the CPU" in str(one.message)]
    assert len(texts) == 2
    assert "aten.sort" in texts[0] and "aten.tanh" not in texts[0]
    assert "1 more floating-point op runs in PyTorch" in texts[1] and "aten.tanh" in texts[1] and "aten.sort" not in texts[1]


def test_a_trace_that_takes_long_is_said_and_a_short_one_is_not(monkeypatch, capfd) -> None:
    monkeypatch.setattr(progress, "FIRST_S", 0.05)
    with progress.tracing(True) as timer:
        timer.join(10)
    with progress.tracing(True):
        pass
    with progress.tracing(False) as timer:
        time.sleep(0.1)
    assert capfd.readouterr().err == (
        "torchane: compiling the model, 0 s so far: PyTorch traces its forward and backward. The first step waits for it.\n"
    )
