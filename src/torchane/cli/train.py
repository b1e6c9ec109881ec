"""`torchane train`: the main job. Options become a request; train/run.py does the work."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from torchane.cli.options import Command, number
from torchane.cli.signals import load
from torchane.models.presets import PRESETS

DEVICES = ("auto", "twin", "ane")
ARITHMETICS = ("exact", "engine")
RANGES = ("auto", "on", "off")

PRESET_HELP = "; ".join(f"{preset.name}: {preset.summary}" for preset in PRESETS.values())


@click.command("train", cls=Command)
@click.option("--preset", type=click.Choice(list(PRESETS)), help=f"The model. {PRESET_HELP}.  [default: tiny]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A file or folder of text or source code, .jsonl or notebooks among them, or uint16 tokens (.bin) of nanoGPT or llama2.c. "
    "Without it: stories made up here, whose entropy is known.",
)
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), metavar="FILE", help="A byte-level tokenizer.json.  [default: one is trained]"
)
@number("--steps", help="Optimizer steps, in all.  [default: the preset's]")
@number("--seq-len", help="Tokens in one window.  [default: the preset's]")
@number("--batch-size", help="Windows in one micro-step.  [default: the preset's]")
@number("--grad-accum", help="Micro-steps in one step, merged into one batch.  [default: 1]")
@number("--lr", help="Peak learning rate.  [default: the preset's]")
@number("--seed", help="Fixes initial weights, batches and samples.  [default: 0]")
@number("--eval-interval", metavar="STEPS", help="Validate every so often.")
@number("--checkpoint-interval", metavar="STEPS", help="Save every so often.")
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="ane: Apple's Neural Engine; twin: the same programs on the CPU; auto: the engine where torchane doctor has seen it compute.",
)
@click.option(
    "--arithmetic",
    type=click.Choice(ARITHMETICS),
    help="Of the twin. exact: exact products, fp32 sums; engine: the chip's own rules.  [default: exact]",
)
@click.option(
    "--ranges",
    type=click.Choice(RANGES),
    help="Powers of two that keep every product inside the engine's window. auto: for an engine and its arithmetic.  "
    "[default: auto]",
)
@click.option(
    "--audit", is_flag=True, help="At the end, show what the engine's arithmetic does to one batch; audit.json, audit.svg."
)
@number("--threads", help="CPU threads. The numbers do not depend on it.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="The run folder.  [default: runs/PRESET-N]")
@click.option(
    "--resume", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="RUN", help="Continue this run folder where it was saved."
)
@click.option(
    "--dump", type=click.Path(path_type=Path), metavar="DIR", help="Write every engine program and plan there."
)
@click.option("--json", "as_json", is_flag=True, help="The last line on standard output is one JSON object.")
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
    if _is_engine(options["device"]) and not load("torchane.cli.supervise").is_supervised():
        raise click.exceptions.Exit(_supervised({**options, "as_json": as_json}))
    progress = load("torchane.cli.progress").open_reporter(sys.stderr if as_json else sys.stdout)
    training = load("torchane.cli.training")
    try:
        summary = training.train(training.Request(**options), progress)
    finally:
        progress.close()
    if as_json:
        click.echo(json.dumps(summary))
    if progress.lost is not None:
        raise type(progress.lost)(progress.lost.error, f"The run was ended by it, with a checkpoint: it is at step {summary['steps']:,}.")
    if summary["interrupted"]:
        raise click.exceptions.Exit(128 + summary["signal"])


def _is_engine(device: str) -> bool:
    return device == "ane" or (device == "auto" and sys.platform == "darwin" and load("torchane.runtime.devices").auto_choice()[0] == "ane")


def _supervised(options: dict[str, Any]) -> int:
    """The run in a process that may hang. Raises MissingDeviceError where there is no engine."""
    load("torchane.runtime.ane.framework").find()
    training = load("torchane.cli.training")
    run = options["resume"] or options["out"] or training.free_name(training.RUNS, options["preset"] or "tiny")
    code: int = load("torchane.cli.supervise").supervise(options, run)
    return code
