"""The command line itself: quick help, exit codes, no traceback for what we report on purpose."""

import os
import subprocess
import sys

import pytest

import torchane.cli
from torchane.cli import COMMANDS, run
from torchane.errors import DeviceError, TorchaneError, UsageError


def in_a_process(*arguments):
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = (
        "import sys; from torchane.cli import run; code = run(sys.argv[1:]); "
        "print('loaded:', sorted({'torch', 'numpy', 'rich', 'tokenizers'} & set(sys.modules))); sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=here, check=False
    )


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(arguments):
    done = in_a_process(*arguments)
    assert done.returncode == 0 and "Usage: torchane" in done.stdout and "loaded: []" in done.stdout


def test_help_names_every_command_and_how_to_begin(capsys):
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS) and "torchane train  " in shown


def test_the_package_can_be_run_as_a_module():
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-m", "torchane", "--help"], capture_output=True, text=True, env=here, check=False)
    assert done.returncode == 0 and "Usage: torchane [OPTIONS] COMMAND" in done.stdout


def test_an_unknown_command_ends_with_2(capsys):
    assert run(["fly"]) == 2
    assert "No such command 'fly'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (UsageError("no."), 2, "UsageError: no.\n"),
        (DeviceError("gone."), 1, "DeviceError: gone.\n"),
        (TorchaneError("oh."), 1, "TorchaneError: oh.\n"),
        (KeyboardInterrupt(), 130, "Stopped.\n"),
    ],
)
def test_errors_become_a_message_and_an_exit_code(monkeypatch, capsys, error, code, shown):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torchane.cli.cli, "main", fail)
    assert run(["train"]) == code
    assert capsys.readouterr().err == shown
