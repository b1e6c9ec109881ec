"""Whole runs through engine programs on the twin, beside PyTorch eager in fp32 with the same model, batches and steps.

Bars: the loss of every step within 1 %, validation within 0.5 % at the end (1 % on tiny Shakespeare, after
300 steps). fp16 storage moves single gradients by up to 1 %; a run that drifted apart would show it here.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from torchane.cli.training import Request, train
from torchane.train.engine import EngineModel
from torchane.train.forward import HostModel

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch.compiler.reset()


class Silent:
    """A reporter that nobody reads."""

    def __getattr__(self, name):
        return lambda *args: None


def run(folder: Path, compile_model, **options) -> SimpleNamespace:
    summary = train(Request(out=folder, **options), Silent(), compile_model)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return SimpleNamespace(summary=summary, losses=losses)


def beside(tmp_path: Path, **options) -> tuple[SimpleNamespace, SimpleNamespace]:
    ours = run(tmp_path / "twin", lambda model, device, dump: EngineModel(model, "twin"), **options)
    theirs = run(tmp_path / "eager", lambda model, device, dump: HostModel(model), **options)
    return ours, theirs


def largest_gap(ours: SimpleNamespace, theirs: SimpleNamespace) -> float:
    assert len(ours.losses) == len(theirs.losses) > 0
    return max(abs(a - b) / b for a, b in zip(ours.losses, theirs.losses, strict=True))


def valid_gap(ours: SimpleNamespace, theirs: SimpleNamespace, key: str = "valid_loss") -> float:
    return abs(ours.summary[key] - theirs.summary[key]) / theirs.summary[key]


@pytest.mark.parametrize(("preset", "steps"), [("tiny", 100), ("stories15m", 10)])
def test_every_loss_is_within_one_percent(tmp_path, evidence, preset, steps):
    ours, theirs = beside(tmp_path, preset=preset, steps=steps)
    evidence("largest gap between the losses of a step", largest_gap(ours, theirs), "relative")
    evidence("gap between validation losses at the end", valid_gap(ours, theirs), "relative")
    evidence("losses on the twin", ours.losses, "nats per token")
    evidence("losses in eager fp32", theirs.losses, "nats per token")
    assert largest_gap(ours, theirs) < 0.01
    assert valid_gap(ours, theirs) < 0.005


def test_stories110m_takes_a_step(tmp_path, evidence):
    ours = run(tmp_path / "run", lambda model, device, dump: EngineModel(model, "twin"), preset="stories110m", steps=1)
    evidence("loss of the step", ours.losses[0], "nats per token")
    assert ours.losses[0] == pytest.approx(10.4, abs=0.2)  # an untrained model: ln 32000 = 10.37


def test_tiny_shakespeare_after_300_steps_is_within_one_percent(tmp_path, evidence, shared_data):
    ours, theirs = beside(tmp_path, data=shared_data / "text" / "tinyshakespeare.input.txt", steps=300)
    gap = valid_gap(ours, theirs, "bits_per_byte")
    evidence("bits per byte on the twin", ours.summary["bits_per_byte"])
    evidence("bits per byte in eager fp32", theirs.summary["bits_per_byte"])
    evidence("gap", gap, "relative")
    assert gap < 0.01


def test_the_default_run_ends_within_ten_percent_of_the_floor(tmp_path, evidence):
    ours = run(tmp_path / "run", lambda model, device, dump: EngineModel(model, "twin"))
    evidence("bits per byte", ours.summary["bits_per_byte"])
    evidence("floor", ours.summary["floor"])
    evidence("tokens per second", ours.summary["tokens_per_s"])
    assert ours.summary["bits_per_byte"] < 1.1 * ours.summary["floor"]
