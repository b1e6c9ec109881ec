"""`torchane lora`: fine-tuning, with mlx-lm's flags. Options become a request; cli/tuning.py does the work."""

import sys
from typing import Any

import click

from torchane.cli.ending import run_to_end
from torchane.cli.options import Command, takes
from torchane.cli.signals import load


class LoraCommand(Command):
    """Answers for the flags of mlx_lm.lora that are not taken."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            why = load("torchane.finetune.settings").UNSUPPORTED.get(error.option_name.lstrip("-").replace("-", "_"))
            if why is None:
                raise
            raise click.UsageError(f"{error.option_name} is not supported: {why}. Leave it out.", ctx) from None


@click.command("lora", cls=LoraCommand)
@takes("lora")
def command(as_json: bool, **options: Any) -> None:
    """Fine-tune a model that you have, on your data, and keep the adapter.

    Flags, defaults and data are those of mlx_lm.lora. The adapter's folder is PEFT's. Ctrl-C saves and ends; --resume goes on from
    there, or from the last checkpoint of a run that was killed, with the same numbers as if it had never stopped. Nothing that is
    there is overwritten.

    \b
      torchane lora --model Qwen3-0.6B --train --data data/ --iters 600
      torchane lora --model Qwen3-0.6B --train --data notes.txt --max-seq-length 256
      torchane lora --resume adapters
      torchane lora --model Qwen3-0.6B --test --data data/

    Each line of data/train.jsonl is one of

    \b
      {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
      {"prompt": "...", "completion": "..."}
      {"text": "..."}

    Needs: pip install "torchane[finetune]"
    """
    supervision = load("torchane.cli.supervise")
    if supervision.wants_engine(options["device"]) and not supervision.is_supervised():
        load("torchane.runtime.ane.framework").find()
        run = load("torchane.cli.tuning").run_folder(options)
        if run is not None:  # a test alone has nothing to go on from
            raise click.exceptions.Exit(supervision.supervise({**options, "as_json": as_json}, run, "lora"))
    progress = load("torchane.cli.tuning_progress").TuneReporter(sys.stderr if as_json else sys.stdout)
    tuning = load("torchane.cli.tuning")
    run_to_end(lambda: tuning.tune(tuning.Request(**options), progress), progress, as_json=as_json, counted=("iteration", "iters"))
