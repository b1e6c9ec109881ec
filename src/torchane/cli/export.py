"""`torchane export SOURCE --to ...`: a model or an adapter as others read it."""

from pathlib import Path

import click

from torchane.cli.converting import read_with_base, tell
from torchane.cli.options import Command, takes
from torchane.cli.signals import load
from torchane.errors import UsageError


@click.command("export", cls=Command)
@click.argument("source", type=click.Path(path_type=Path))
@takes("export")
def command(
    source: Path, to: str | None, gguf_type: str, model: str | None, tokenizer: Path | None, out: Path | None, as_json: bool
) -> None:
    """Write SOURCE as other programs read it, a folder for each format, and say which commands use it.

    SOURCE is a run, a Hugging Face folder, a .gguf, a llama2.c .bin, or an adapter (PEFT's or mlx-lm's folder, a LoRA as .gguf).
    For hf, gguf and llama2c an adapter is merged into its base. Nothing that is there is written over.

    \b
      torchane export runs/tiny-1 --to hf,gguf
      torchane export adapters --to mlx,peft,gguf-lora --model Qwen3-0.6B/
    """
    exporting = load("torchane.convert.export")
    if to is None:
        raise UsageError(f"--to says in which formats: one or more of {', '.join(exporting.FORMATS)}.")
    formats = exporting.parse_formats(to)
    base, adapter = read_with_base(source, model, tokenizer)
    name = source.resolve().stem if source.is_file() else source.resolve().name
    place = out if out is not None else Path(f"{name}-export")
    written, refused = [], []
    try:
        for target in formats:
            try:
                written.append(exporting.export(target, place, name, base, adapter, gguf_type=gguf_type))
            except UsageError as error:  # the other formats are written all the same
                refused.append(f"{target}: {error}")
    finally:  # where a disk is full, too, what was written before is there
        tell(written, as_json=as_json)
    if refused:
        raise UsageError("\n".join(refused))
