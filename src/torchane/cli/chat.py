"""`torchane chat MODEL`: a conversation, line by line."""

import sys
from pathlib import Path
from typing import Any

import click

from torchane.cli.options import Command, takes
from torchane.cli.signals import load
from torchane.cli.writing import load_pretrained, model_of, sampling_of, say_speed, template_settings, whole_line

_HELP = "Commands: /reset begins anew, /exit or Ctrl-D ends."


@click.command("chat", cls=Command)
@click.argument("model", required=False)
@takes("chat")
def command(
    model: str | None, named: str | None, adapter_path: Path | None, system_prompt: str | None, chat_template_config: str | None, extra_eos_token: tuple[str, ...],
    device: str, arithmetic: str, **options: Any,
) -> None:  # fmt: skip
    """Talk with MODEL (a Hugging Face folder, a .gguf, an adapter, a name on the hub), whose tokenizer has a chat template.

    Each line is a message. /reset forgets the conversation, /exit or Ctrl-D ends.

    \b
      torchane chat Qwen3-0.6B/ --adapter-path adapters
    """
    sampling, settings = sampling_of(options), template_settings(chat_template_config)
    pretrained = load("torchane.generate.pretrained")
    device = pretrained.host_device(device, arithmetic)
    base, adapted = load_pretrained(model_of(model, named), adapter_path)
    begin = [{"role": "system", "content": system_prompt}] if system_prompt is not None else []
    pretrained.templated(base, [*begin, {"role": "user", "content": "Hello"}], settings)  # a model without a template is refused before anything is typed
    writer = pretrained.Writer(base, device, adapted, extra_ends=extra_eos_token, arithmetic=arithmetic)
    messages = list(begin)
    click.echo(_HELP, err=True)
    while line := _read_line():
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            messages = list(begin)
        elif text:
            messages.append({"role": "user", "content": text})
            with whole_line():
                [one] = writer.write([pretrained.templated(base, messages, settings)], sampling, is_templated=True, keeps=True, tell=lambda index, piece: click.echo(piece, nl=False))
            say_speed([one], writer.device)
            messages.append({"role": "assistant", "content": one.text})


def _read_line() -> str:
    """The next line with its end; "" at the end of input."""
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    return sys.stdin.readline()
