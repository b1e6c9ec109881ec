"""Writes a training step as a file that plan_check.cpp runs without Python: each program's tape, each run with what went in and out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtime" / "ane"))

from torchane import native
from torchane.runtime.observers import Moment, Observer
from torchane.runtime.twin import TwinDevice, shared

KEYS = {
    "chain": ("sizes", "row", "whole_rows", "registers", "operands", "micros"),
    "matmul": ("x", "y", "out", "m", "n", "k", "transpose_x", "transpose_y", "batch", "x_strides", "y_strides"),
    "copy": ("x", "out", "sizes", "x_strides", "out_strides"),
    "reduce": ("x", "out", "reduction", "sizes", "kept"),
    "softmax": ("x", "out", "outer", "entries", "inner"),
}
#: Places are two numbers, without their count.
PLACES = ("x", "y", "out")


_Tape = native.Tape  # which a test replaces by this:


class RecordingTape(_Tape):
    """A tape that remembers what it was made of."""

    def __init__(self, **made: Any):
        super().__init__(**made)
        self.made, self.said = made, []


def _recorded(kind: str) -> Any:
    def add(self: RecordingTape, ops: Any, **arguments: Any) -> None:
        getattr(_Tape, kind)(self, ops, **arguments)
        self.said.append((kind, arguments))

    return add


for _kind in KEYS:
    setattr(RecordingTape, _kind, _recorded(_kind))


class Recorder(Observer):
    """Remembers every run of a program on the twin."""

    def __init__(self) -> None:
        self.runs: list[tuple[Any, list[np.ndarray], list[np.ndarray]]] = []

    def after(self, moment: Moment) -> None:
        for run in moment.runs:
            self.runs.append((run.program.tape, [b.array.copy() for b in run.inputs], [b.array.copy() for b in run.outputs]))


def record(target: Path, monkeypatch: Any) -> int:
    """One step of a small network (tests/runtime/ane/trainer.py); how many runs there were."""
    from trainer import SmallRun

    monkeypatch.setattr(native, "Tape", RecordingTape)
    monkeypatch.setattr(shared, "LEAST_BYTES", 1 << 60)  # what is recorded holds all of its constants
    recorder = Recorder()
    run = SmallRun(TwinDevice(), observers=[recorder])
    recorder.runs.clear()
    run.losses(1)
    tapes = list({id(tape): tape for tape, _, _ in recorder.runs}.values())
    lines = [str(len(tapes)), *(_tape(tape) for tape in tapes), str(len(recorder.runs))]
    for tape, given, results in recorder.runs:
        lines.append(str(next(i for i, one in enumerate(tapes) if one is tape)))
        lines += [_halves(array) for array in (*given, *results)]
    target.write_text("\n".join(lines) + "\n")
    return len(recorder.runs)


def _tape(tape: RecordingTape) -> str:
    made = tape.made
    head = [made["name"].replace(" ", "-"), _ports(made["inputs"]), _ports(made["outputs"]), _halves(made["constants"]), str(made["scratch"])]
    steps = (f"{kind} " + " ".join(_field(key, arguments[key]) for key in KEYS[kind]) for kind, arguments in tape.said)
    return "\n".join([*head, str(len(tape.said)), *steps])


def _ports(shapes: Sequence[Sequence[int]]) -> str:
    return " ".join([str(len(shapes)), *(_numbers(shape) for shape in shapes)])


def _numbers(values: Sequence[Any]) -> str:
    return " ".join(map(str, (len(values), *(int(value) for value in values))))


def _halves(array: np.ndarray) -> str:
    return _numbers(np.ascontiguousarray(array).reshape(-1).view(np.uint16).tolist())


def _field(key: str, value: Any) -> str:
    if key in PLACES:
        return f"{int(value[0])} {int(value[1])}"
    if key == "operands":
        return " ".join([str(len(value)), *(f"{int(place[0])} {int(place[1])} {_numbers(strides)} {int(along)}" for place, strides, along in value)])
    if key == "micros":
        return " ".join([str(len(value)), *(" ".join(str(int(field)) for field in micro) for micro in value)])
    return _numbers(value) if isinstance(value, list | tuple) else str(int(value))
