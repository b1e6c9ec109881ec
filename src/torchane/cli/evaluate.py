"""`torchane eval MODEL --data FILE`: how good a model is on a file, or on tasks of lm-evaluation-harness."""

import json
from pathlib import Path
from typing import Any

import click

from torchane.cli.options import Command, takes
from torchane.cli.signals import load
from torchane.cli.writing import load_pretrained, model_of
from torchane.errors import UsageError


@click.command("eval", cls=Command)
@click.argument("model", required=False)
@takes("eval")
def command(
    model: str | None, named: str | None, data: Path | None, tasks: str | None, adapter_path: Path | None, limit: int | None, batch_size: int, seq_len: int | None, max_tokens: int,
    num_shots: int | None, apply_chat_template: bool, device: str, arithmetic: str, as_json: bool,
) -> None:  # fmt: skip
    """Measure MODEL (a run, a Hugging Face folder, a .gguf, an adapter) on a file.

    A text, or lines with "text": perplexity and bits per byte, of every token, the first behind the tokenizer's token for a beginning, or for an
    end where it has none. Lines with "prompt" and "completion", or "messages": exact match.
    Lines with "prompt", "choices" and "answer": multiple choice.

    \b
      torchane eval runs/tiny-1 --data notes.txt
      torchane eval Qwen3-0.6B/ --adapter-path adapters --data test.jsonl
      torchane eval Qwen3-0.6B/ --tasks hellaswag,arc_easy
    """
    if (data is None) == (tasks is None):
        raise UsageError("--data names a file to measure on, --tasks those of lm-evaluation-harness: give one of the two.")
    if tasks is None and (apply_chat_template or num_shots is not None):
        raise UsageError(f"{'--apply-chat-template' if apply_chat_template else '--num-shots'} is for --tasks, and --data is measured as it is. Leave it out.")
    target, evaluate = model_of(model, named), load("torchane.generate.evaluate")
    device = load("torchane.generate.pretrained").host_device(device, arithmetic)
    kind, records = evaluate.read(data) if data is not None else ("harness", [])
    base, adapted = load_pretrained(target, adapter_path)
    asked = evaluate.Evaluator(base, device, adapted, batch_size=batch_size, seq_len=seq_len, arithmetic=arithmetic)
    if tasks is not None:
        names = [name for name in tasks.split(",") if name]
        results: dict[str, Any] = load("torchane.generate.harness").measure(asked, names, limit=limit, num_shots=num_shots, is_talk=apply_chat_template)
    else:
        results = asked.run(kind, records[:limit], max_tokens=max_tokens)
    if as_json:
        click.echo(json.dumps({"kind": kind, "results": results}))
        return
    for name, value in results.items():
        click.echo(f"{name}: {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
