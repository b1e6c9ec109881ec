"""The command line in this process, its model run by PyTorch: what the twin computes is tested elsewhere."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import torchane.cli
from torchane.cli import training
from torchane.train.forward import HostModel


@dataclass
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str
    json: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def torchane_command(capfd, tmp_path, monkeypatch) -> Callable[..., Done]:
    """torchane_command("train", "--steps", "3") -> Done, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    eager = partial(training.train, compile_model=lambda model, device, **options: HostModel(model, "twin"))
    monkeypatch.setattr(training, "train", eager)

    def run(*arguments: object) -> Done:
        code = torchane.cli.run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        lines = out.splitlines()
        described = json.loads(lines[-1]) if "--json" in arguments and lines and code in (0, 130) else {}
        return Done(code, out, err, described)

    return run


@pytest.fixture
def text(tmp_path) -> Path:
    """A small file of text."""
    path = tmp_path / "notes.txt"
    path.write_text("".join(f"Line {i}: the {i * i % 97}th fox went over {i * 7 % 31} hills.\n" for i in range(3000)))
    return path


@pytest.fixture
def small_elsewhere(text) -> tuple[object, ...]:
    """Arguments of a run that takes a second, without its folder."""
    return ("train", "--data", text, "--steps", 6, "--batch-size", 2, "--seq-len", 32, "--json")


@pytest.fixture
def small(small_elsewhere) -> tuple[object, ...]:
    """The same in the folder `run`."""
    return (*small_elsewhere, "--out", "run")
