"""`torchane generate RUN --prompt ...`: a trained model writes."""

import json
import time
from pathlib import Path

import click

from torchane.cli.options import Command, takes
from torchane.cli.signals import load


@click.command("generate", cls=Command)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@takes("generate")
def command(
    run: Path, prompt: str, max_tokens: int, temperature: float, top_k: int | None, seed: int, as_json: bool
) -> None:
    """Continue a prompt with the model in the run folder RUN.

    The model runs in PyTorch on the CPU, in float32. The text ends where the model ends it, or after --max-tokens.

    \b
      torchane generate runs/tiny-1
      torchane generate runs/tiny-1 --prompt "Mira the brave fox" --temperature 0
    """
    model = load("torchane.train.run_folder").load_run_model(run)
    tokenizer = load("torchane.train.run_folder").load_tokenizer(run)
    start = time.perf_counter()
    stream = load("torchane.generate.text").continue_text(
        model, tokenizer, prompt, max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed
    )
    pieces = []
    if not as_json:
        click.echo(prompt, nl=False)
    for piece in stream:
        pieces.append(piece)
        if not as_json:
            click.echo(piece, nl=False)
    click.echo("" if not as_json else json.dumps({
        "prompt": prompt,
        "text": "".join(pieces),
        "tokens": len(pieces) - 1,  # the last piece is what remained of an unfinished character
        "tokens_per_s": (len(pieces) - 1) / (time.perf_counter() - start),
        "seed": seed,
    }))  # fmt: skip
