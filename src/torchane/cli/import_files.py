"""`torchane import SOURCE`: another tool's file as a folder that torchane, transformers and PEFT read."""

from pathlib import Path

import click

from torchane.cli.converting import read_with_base, tell
from torchane.cli.options import Command, takes
from torchane.cli.signals import load


@click.command("import", cls=Command)
@click.argument("source", type=click.Path(path_type=Path))
@takes("import")
def command(source: Path, model: str | None, tokenizer: Path | None, out: Path | None, as_json: bool) -> None:
    """Make a Hugging Face folder of a .gguf or a llama2.c .bin; make a PEFT folder of an adapter (mlx-lm's, PEFT's, a LoRA as .gguf).

    \b
      torchane import model-q8_0.gguf
      torchane import stories15M.bin --tokenizer tokenizer.bin
      torchane import mlx-adapters --model Qwen3-0.6B/
    """
    base, adapter = read_with_base(source, model, tokenizer)
    place = out if out is not None else Path(f"{source.resolve().stem if source.is_file() else source.resolve().name}-imported")
    written = load("torchane.convert.export").bring(base, adapter, place)
    tell([written], as_json=as_json)
