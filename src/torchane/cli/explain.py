"""`torchane explain MODEL`: each op of a model's training step, where it runs and why."""

import os
from pathlib import Path
from typing import Any

import click

from torchane.cli.options import Command, takes
from torchane.cli.signals import load
from torchane.errors import UsageError


@click.command("explain", cls=Command)
@click.argument("model")
@takes("explain")
def command(model: str, batch_size: int, seq_len: int, chip: str, without: str, as_json: bool) -> None:
    """Say of each op of MODEL's forward and backward where it runs and why, with its share of multiply-adds.

    MODEL is a preset of `torchane train` (tiny, stories15m, gpt2, qwen3-0.6b, ...) or a folder with a Hugging
    Face config.json of a llama, qwen3 or gpt2. Nothing is trained; weights are random. Any other module:
    print(torchane.explain(model, *inputs)) in Python.

    \b
      torchane explain tiny
      torchane explain runs/tiny-1 --seq-len 256 --json
    """
    load("torchane.chips").load(chip)  # an unknown name is refused before anything is built
    torch = load("torch")
    built = _build(model)
    tokens = torch.zeros(batch_size, seq_len, dtype=torch.long)
    found = load("torchane.capture.explain").explain(built, tokens, options={"chip": chip, "without": without})
    click.echo(found.to_json() if as_json else str(found))


def _build(name: str) -> Any:
    presets = load("torchane.models.presets")
    if name in presets.PRESETS:
        config = presets.preset(name).config
    elif os.path.lexists(name):
        config = load("torchane.models.folder").load_config(Path(name))
    else:
        raise UsageError(f"MODEL {name!r} is no folder, and no preset: those are {', '.join(presets.PRESETS)}.")
    return load("torchane.models.build").build_model(config)
