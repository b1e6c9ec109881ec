"""A training run on an engine, in a process that may hang: a hang ends it, and a fresh one resumes from the last checkpoint.

    torchane train --device ane ──► this process ── starts ──► the same command, supervised
                                        ▲                          │ exit code 75: a dispatch did not return
                                        └── --resume RUN ◄─────────┘

A dispatch that hangs cannot be cancelled, and the process that waits for it can do nothing else (runtime/ane/watchdog.py ends
it). A program that has hung three times is left to the twin, so this ends. The child has a process group of its own, so that
a Ctrl-C reaches it once, from here.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from torchane.cli.signals import load
from torchane.options import is_said
from torchane.runtime.ane.watchdog import EXIT_CODE

#: Set in the child.
SUPERVISED = "TORCHANE_SUPERVISED"
#: The child, less its arguments.
PROGRAM = [sys.executable, "-m", "torchane"]
#: A run that hangs more often, each time at another program, is given up.
MOST_RESTARTS = 20

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def is_supervised() -> bool:
    return SUPERVISED in os.environ


@dataclass(frozen=True)
class Supervised:
    """A command whose runs go on by --resume. out: the option that names a new run's folder. mark: the file that says one was begun. kept:
    the options that --resume takes."""

    out: str
    mark: str
    kept: tuple[str, ...]


COMMANDS = {
    "train": Supervised("out", "run.json", ("device", "threads", "dump", "as_json", "data", "audit", "timeline", "trace")),
    "lora": Supervised("adapter_path", "training.json", ("device", "threads", "as_json", "model", "data", "test", "test_batches", "report_to", "project_name")),
}


def wants_engine(device: str) -> bool:
    """Whether --device asks for an engine, by name or by what this machine has."""
    return device == "ane" or (device == "auto" and sys.platform == "darwin" and load("torchane.runtime.devices").auto_choice()[0] == "ane")


def supervise(options: Mapping[str, Any], run: Path, command: str = "train") -> int:
    """Runs `torchane train`, or lora, with these options until it ends otherwise than by a hang; its exit code.

    options: of the command, by parameter name. run: the run folder, that of --resume or the new one.
    """
    known = COMMANDS[command]
    arguments = _arguments({**options, known.out: None if options.get("resume") else run})
    for restart in range(MOST_RESTARTS + 1):
        code = _wait_for([*PROGRAM, command, *arguments])
        if code != EXIT_CODE:
            return code
        if restart < MOST_RESTARTS and (run / known.mark).is_file():
            arguments = _arguments({**{name: options.get(name) for name in known.kept}, "resume": run})
        click.echo(f"The engine hung (restart {restart + 1} of at most {MOST_RESTARTS}). A fresh process goes on from the last checkpoint of {run}.", err=True)
    click.echo(f"The engine hung {MOST_RESTARTS + 1} times; this run is given up. Go on with the twin: torchane {command} --resume {run} --device twin", err=True)
    return 1


def _arguments(options: Mapping[str, Any]) -> list[str]:
    """The command line that says the same."""
    made: list[str] = []
    for name, value in options.items():
        flag = "--json" if name == "as_json" else f"--{name.replace('_', '-')}"
        if value is True:
            made.append(flag)
        elif is_said(value):
            made += [flag, str(value)]
    return made


def _wait_for(command: Sequence[str]) -> int:
    child = subprocess.Popen(command, env={**os.environ, SUPERVISED: "1"}, process_group=0)
    with _forwarding(child):
        code = child.wait()
    if code >= 0:
        return code
    click.echo(
        f"The training process was ended by {signal.Signals(-code).name}. If nobody sent it, Apple's framework crashed: please report "
        "it. --resume goes on from the last checkpoint.",
        err=True,
    )
    return 128 - code


@contextmanager
def _forwarding(child: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Signals that mean the run go to the child; stopped (Ctrl-Z) and continued, they stop and go on together."""

    def forward(number: int, frame: object) -> None:
        child.send_signal(number)

    def stop(number: int, frame: object) -> None:
        child.send_signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        child.send_signal(signal.SIGCONT)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
