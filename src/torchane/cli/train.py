"""`torchane train`: the main job. Options become a request; train/run.py does the work."""

import sys
from contextlib import ExitStack
from typing import Any

import click

from torchane.cli.ending import run_to_end
from torchane.cli.options import Command, takes
from torchane.cli.signals import load


@click.command("train", cls=Command)
@takes("train")
def command(as_json: bool, **options: Any) -> None:
    """Train a language model.

    Without arguments, a small Llama learns to tell stories in about two minutes. Its forward and backward passes
    are Neural Engine programs; loss and optimizer stay with PyTorch. Ctrl-C saves and ends; --resume goes on from there
    with the same numbers as if it had never stopped.

    \b
      torchane train
      torchane train --data tinyshakespeare.txt --steps 300
      torchane train --preset stories15m --steps 1000 --out runs/first
      torchane train --resume runs/first

    The run folder holds the model under Hugging Face's names (config.json, model.safetensors, tokenizer.json),
    metrics.jsonl, and run.json, which says where it came from.
    """
    supervision = load("torchane.cli.supervise")
    if supervision.wants_engine(options["device"]) and not supervision.is_supervised():
        raise click.exceptions.Exit(_supervised({**options, "as_json": as_json}))
    progress = load("torchane.cli.progress").open_reporter(sys.stderr if as_json else sys.stdout)
    training = load("torchane.cli.training")
    run_to_end(lambda: training.train(training.Request(**options), progress), progress, as_json=as_json, counted=("step", "steps"))


def _supervised(options: dict[str, Any]) -> int:
    """The run in a process that may hang. Raises MissingDeviceError where there is no engine."""
    load("torchane.runtime.ane.framework").find()
    training = load("torchane.cli.training")
    with ExitStack() as held:
        run = options["resume"] or options["out"]
        if run is None:
            run = training.reserve(training.RUNS, options["preset"] or "tiny")
            held.callback(training.remove_empty, run)
        code: int = load("torchane.cli.supervise").supervise(options, run)
    return code
