"""`torchane fuse`: an adapter merged into its base, with the flags of mlx_lm.fuse."""

from pathlib import Path

import click

from torchane.cli.converting import read_with_base, tell
from torchane.cli.options import Command, takes
from torchane.cli.signals import load
from torchane.errors import UsageError


@click.command("fuse", cls=Command)
@takes("fuse")
def command(model: str | None, adapter_path: Path, save_path: Path, dequantize: bool, as_json: bool) -> None:
    """Merge an adapter (PEFT's, mlx-lm's, a LoRA as .gguf) into its base, and save the model as a Hugging Face folder.

    The merge is computed in float32 and rounded once to the base's type.

    \b
      torchane fuse --model Qwen3-0.6B/ --adapter-path adapters --save-path fused_model
    """
    base, adapter = read_with_base(adapter_path, model, None)
    if adapter is None:
        raise UsageError(f"{adapter_path} is a whole model: there is nothing to merge. For another format of it: torchane export.")
    if base.quantised and not dequantize:
        raise UsageError(f"{base.source} keeps its weights in {base.quantised}, and the merged model is written as floats: say --dequantize, or take the model that it was made from.")
    load("torchane.convert.adapter").require_fits(adapter, base)
    hf = load("torchane.convert.hf")
    with load("torchane.convert.files").new_folder(save_path) as folder:
        hf.write(load("torchane.convert.merge").merge(base, adapter), folder)
    written = load("torchane.convert.export").Written
    commands = (f"torchane generate {save_path} --prompt 'Hello'", f"torchane export {save_path} --to gguf", f"mlx_lm.generate --model {save_path} --prompt 'Hello'")
    tell([written("hf", save_path, commands)], as_json=as_json)
