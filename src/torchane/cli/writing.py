"""What generate, chat and eval have in common: a model of any kind, and its writer."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from torchane.cli.signals import load
from torchane.cli.streams import LostOutput
from torchane.errors import UsageError, shown


def model_of(given: str | None, named: str | None) -> str:
    """The model, as an argument or as --model. Raises UsageError unless it is one of the two."""
    if (given is None) == (named is None):
        both = f"{given} and --model {named} are both given" if given is not None else "No model is given"
        raise UsageError(f"{both}. Give one: torchane generate MODEL, or --model MODEL.")
    return given if given is not None else str(named)


def template_settings(text: str | None) -> dict[str, Any]:
    """What --chat-template-config says. Raises UsageError where it is no JSON object."""
    try:
        settings = {} if text is None else json.loads(text)
    except ValueError as error:
        raise UsageError(f"--chat-template-config is {shown(text)}, and no JSON: {error}.") from error
    if not isinstance(settings, dict):
        raise UsageError(f"--chat-template-config is {shown(text)}, and it must be a JSON object: '{{\"enable_thinking\": false}}'.")
    return settings


def load_pretrained(target: str, adapter: Path | None) -> tuple[Any, Any]:
    """(Base, model): through transformers, with an adapter around it. An adapter as the target brings the base that it names.
    Raises UsageError, ParseError, RunFolderError."""
    recognize, models = load("torchane.convert.recognize"), load("torchane.finetune.models")
    path = Path(target)
    if adapter is None and path.exists() and recognize.kind_of(path) in recognize.ADAPTERS:
        named = recognize.base_of(path) if path.is_dir() else None
        if named is None:
            raise UsageError(f"{path} is an adapter and does not say which model it belongs to: give the model, and this as --adapter-path.")
        target, adapter = named, path
    base = models.load_base(target)
    if adapter is None:
        return base, base.model
    found = load("torchane.finetune.quantize").recorded(adapter)
    if found is not None:
        click.echo(load("torchane.finetune.quantize").round_module(base.model, found), err=True)
    return base, load("torchane.generate.adapted").with_adapter(base, adapter)


@contextmanager
def whole_line(is_shown: bool = True) -> Iterator[None]:
    """What is written within it ends with its line, also where it is stopped: what is said then stands on a line of its own."""
    try:
        yield
    finally:
        if is_shown and not isinstance(sys.exception(), LostOutput | BrokenPipeError):
            click.echo()


def sampling_of(options: dict[str, Any]) -> Any:
    """The Sampling that flags say; takes them out of `options`."""
    names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop")
    return load("torchane.generate.sampling").Sampling(**{name: options.pop(name) for name in names})


def speed(written: list[Any]) -> dict[str, float | None]:
    """Tokens a second, of the prompts together and of what followed them; None where nothing was timed."""
    prefill, decode = max(one.prefill_s for one in written), max(one.decode_s for one in written)
    later = sum(max(one.tokens - 1, 0) for one in written)
    return {
        "prefill_tokens_per_s": sum(one.prompt_tokens for one in written) / prefill if prefill else None,
        "decode_tokens_per_s": later / decode if decode and later else None,
    }


def say_speed(written: list[Any], device: str) -> None:
    """For a person, on standard error after the text: what ended it early, how much, how fast, where."""
    rates = speed(written)
    parts = [f"{sum(one.prompt_tokens for one in written):,} tokens read", f"{sum(one.tokens for one in written):,} written"]
    rate = ", ".join(f"{value:,.1f} tokens/s {name}" for name, value in (("read", rates["prefill_tokens_per_s"]), ("written", rates["decode_tokens_per_s"])) if value)
    for note in dict.fromkeys(one.note for one in written if one.note):
        click.echo(note, err=True)
    click.echo(f"({', '.join(parts)}{'; ' + rate if rate else ''}; on {device})", err=True)
