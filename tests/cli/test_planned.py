"""Plans on disk: found again by all that they depend on, never trusted when damaged, and priced anew."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from torchane.cli import planned
from torchane.cli.planned import Request, default_root, kept_plans, planned_step, planned_steps
from torchane.errors import LegalityError, TorchaneWarning
from torchane.models.presets import preset
from torchane.plan.memory import Forecast
from torchane.plan.outline import PlannedStep
from torchane.runtime import kept_files

CONFIG = preset("tiny").config
REQUEST = Request(CONFIG, 2, 64, None, {"chip": "m4", "ranges": "on", "recompute": "none", "frozen": "inputs", "cache": "on"})


@pytest.fixture
def worked_out(monkeypatch) -> list[Request]:
    """Each request that was worked out; its plan has as many bytes of weights as there were before it."""
    asked: list[Request] = []

    def work_out(requests: Sequence[Request]) -> list[PlannedStep]:
        first = len(asked)
        asked.extend(requests)
        return [PlannedStep((), Forecast(first + i + 1, 0, 0, 0, 0, 0), 1.0) for i in range(len(requests))]

    monkeypatch.setattr(planned, "_worked_out", work_out)
    return asked


def test_the_second_time_it_is_read(worked_out):
    assert planned_step(REQUEST) == planned_step(REQUEST)
    assert len(worked_out) == 1


def test_of_several_only_those_that_are_not_on_disk_are_worked_out_and_each_is_kept(worked_out):
    m4, m5 = REQUEST, replace(REQUEST, options={**REQUEST.options, "chip": "m5"})
    (second,) = planned_steps([m5])
    assert [one.memory.weights for one in planned_steps([m4, m5, m4])] == [2, 1, 2]
    assert worked_out == [m5, m4] and planned_step(m5) == second


def test_a_variable_that_is_set_while_a_step_is_worked_out_counts_from_the_next_on(monkeypatch):
    """As importing PyTorch does."""

    def work_out(requests: Sequence[Request]) -> list[PlannedStep]:
        monkeypatch.setenv("TORCH_SET_BY_AN_IMPORT", "1")
        return [PlannedStep((), Forecast(7, 0, 0, 0, 0, 0), 1.0)]

    monkeypatch.setattr(planned, "_worked_out", work_out)
    assert planned_step(REQUEST).memory.weights == 7
    monkeypatch.delenv("TORCH_SET_BY_AN_IMPORT")
    monkeypatch.setattr(planned, "_worked_out", None)  # calling it would fail
    assert planned_step(REQUEST).memory.weights == 7


def test_requests_that_differ_in_the_chip_alone_are_worked_out_together(monkeypatch):
    asked: list[list[Request]] = []

    def work_out(requests: Sequence[Request]) -> list[PlannedStep]:
        asked.append(list(requests))
        return [PlannedStep((), Forecast(1, 0, 0, 0, 0, 0), 1.0)] * len(requests)

    monkeypatch.setattr(planned, "_worked_out", work_out)
    m5, longer = replace(REQUEST, options={**REQUEST.options, "chip": "m5"}), replace(REQUEST, seq_len=65)
    planned_steps([REQUEST, longer, m5], cache=False)
    assert asked == [[REQUEST, m5], [longer]]


CHANGES: dict[str, Callable[[Request], Request]] = {
    "a size of the model": lambda one: replace(one, config=replace(CONFIG, hidden_size=CONFIG.hidden_size * 2)),
    "a constant of the model": lambda one: replace(one, config=replace(CONFIG, rope_theta=CONFIG.rope_theta * 2)),
    "an architecture of the same sizes": lambda one: replace(one, config=type("Other", (type(CONFIG),), {})(**vars(CONFIG))),
    "the batch": lambda one: replace(one, batch_size=3),
    "the sequence": lambda one: replace(one, seq_len=65),
    "adapters": lambda one: replace(one, lora=8),
    **{name: lambda one, name=name: replace(one, options={**one.options, name: f"other {one.options[name]}"}) for name in REQUEST.options if name != "chip"},
    "chip": lambda one: replace(one, options={**one.options, "chip": "m5"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_request_is_worked_out(worked_out, what):
    planned_step(REQUEST)
    other = CHANGES[what](REQUEST)
    planned_step(other)
    planned_step(REQUEST)
    assert worked_out == [REQUEST, other]


def test_every_setting_of_a_model_is_in_the_key():
    """Whatever field a config gets some day."""
    plain = {key: value for key, value in vars(CONFIG).items() if isinstance(value, int | float)}
    others = {replace(REQUEST, config=_forced(name, value)).key for name, value in plain.items()}
    assert len(others | {REQUEST.key}) == len(plain) + 1


def _forced(name: str, value: float):
    config = replace(CONFIG)
    object.__setattr__(config, name, value + 1)
    return config


@pytest.mark.parametrize("change", ["sources or PyTorch", "doctor", "a variable", "Python"])
def test_another_surrounding_is_worked_out(worked_out, monkeypatch, change):
    planned_step(REQUEST)
    match change:
        case "sources or PyTorch":
            monkeypatch.setattr(kept_files, "version", lambda: "another")
        case "doctor":
            monkeypatch.setattr(planned, "wrong_on", lambda chip: {"softmax": "3 steps off"} if chip == "m4" else {})
        case "a variable":
            monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
        case "Python":
            monkeypatch.setattr(planned.platform, "python_version", lambda: "3.99.0")
    planned_step(REQUEST)
    assert len(worked_out) == 2


def test_off_reads_and_keeps_nothing(worked_out):
    planned_step(REQUEST, cache=False)
    assert not default_root().exists()
    planned_step(REQUEST)
    planned_step(REQUEST, cache=False)
    assert len(worked_out) == 3


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data.replace(b'"share": 1.0', b'"share": 0.9')])
def test_a_damaged_file_is_said_removed_and_made_anew(worked_out, damage):
    planned_step(REQUEST)
    (file,) = default_root().glob("*/*")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(TorchaneWarning, match="cannot be used: .*was removed, and the step is planned anew"):
        assert planned_step(REQUEST).memory.weights == 2
    assert planned_step(REQUEST).memory.weights == 2


def test_the_file_of_another_user_is_said_and_made_anew(worked_out, monkeypatch):
    planned_step(REQUEST)
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    with pytest.warns(TorchaneWarning, match="it belongs to another user. It was removed, and the step is planned anew"):
        planned_step(REQUEST)
    assert len(worked_out) == 2


def test_the_file_of_another_request_is_not_taken_for_this_one(worked_out):
    planned_step(REQUEST)
    other = replace(REQUEST, seq_len=32)
    (file,) = default_root().glob("*/*")
    file.rename(file.with_name(f"{other.key}.plan"))
    with pytest.warns(TorchaneWarning, match="it is of"):
        planned_step(other)
    assert worked_out == [REQUEST, other]


def test_a_step_that_fails_is_not_kept(monkeypatch):
    def refuse(requests: Sequence[Request]) -> list[PlannedStep]:
        raise LegalityError("no")

    monkeypatch.setattr(planned, "_worked_out", refuse)
    for _ in range(2):
        with pytest.raises(LegalityError):
            planned_step(REQUEST)
    assert not kept_plans().entries()


def test_a_folder_that_cannot_be_written_costs_the_plan_only(worked_out, cache_folder: Path):
    cache_folder.mkdir(parents=True, exist_ok=True)
    (cache_folder / "plans").write_text("a file is in the way")
    with pytest.warns(TorchaneWarning, match="could not be (read|written).*TORCHANE_CACHE"):
        planned_step(REQUEST)
    assert len(worked_out) == 1


PROCESS = """
import sys
import torchane.cli
code = torchane.cli.run(["plan", "--preset", "tiny", "--seq-len", "32", "--chip", "m4", "--json"])
print("torch" in sys.modules, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.long
def test_a_second_process_prices_the_same_without_pytorch():
    first, second = (subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, check=True) for _ in range(2))
    assert json.loads(first.stdout.splitlines()[-1]) == json.loads(second.stdout.splitlines()[-1])
    assert (first.stderr.split()[-1], second.stderr.split()[-1]) == ("True", "False")
