"""`torchane explain MODEL`: each op of a model's training step, where it runs and why."""

from importlib import import_module
from pathlib import Path

import click


@click.command("explain")
@click.argument("model")
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--seq-len", type=click.IntRange(min=2), default=128, show_default=True)
@click.option("--chip", default="portable", show_default=True, help="The target whose rules every program must meet.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with every ATen call instead of the table.")
def command(model: str, batch_size: int, seq_len: int, chip: str, as_json: bool) -> None:
    """Say of each op of MODEL's forward and backward where it runs and why, with its share of multiply-adds.

    MODEL is a preset of `torchane train` (tiny, stories15m, gpt2, qwen3-0.6b, ...) or a folder with a Hugging
    Face config.json of a llama, qwen3 or gpt2. Nothing is trained; weights are random. Any other module:
    print(torchane.explain(model, *inputs)) in Python.

    \b
      torchane explain tiny
      torchane explain runs/tiny-1 --seq-len 256 --json
    """
    import_module("torchane.chips").load(chip)  # an unknown name is refused before anything is built
    torch = import_module("torch")
    built = _build(model)
    tokens = torch.zeros(batch_size, seq_len, dtype=torch.long)
    found = import_module("torchane.capture.explain").explain(built, tokens, options={"chip": chip})
    click.echo(found.to_json() if as_json else str(found))


def _build(name: str):
    build = import_module("torchane.models.build")
    config = Path(name) / "config.json"
    if config.is_file():
        values = import_module("torchane.models.files").read_json(config)
        return build.build_model(build.read_config(values, source=str(config)))
    return build.build_model(import_module("torchane.models.presets").preset(name).config)
