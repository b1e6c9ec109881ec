"""`torchane generate MODEL --prompt ...`: a model writes."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from torchane.cli.options import Command, takes
from torchane.cli.signals import load
from torchane.cli.writing import load_pretrained, sampling_of, speed, speed_line
from torchane.errors import UsageError


@click.command("generate", cls=Command)
@click.argument("model")
@takes("generate")
def command(
    model: str, prompts: tuple[str, ...], adapter_path: Path | None, system_prompt: str | None, ignore_chat_template: bool, device: str, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Continue prompts with MODEL: a run, a Hugging Face folder, a .gguf, a llama2.c .bin, an adapter, or a name on the hub.

    The text ends where the model ends it, at a --stop, or after --max-tokens. A prompt for a model with a chat template is a message
    to it, unless --ignore-chat-template says otherwise.

    \b
      torchane generate runs/tiny-1 --prompt "Mira the brave fox" --temperature 0
      torchane generate Qwen3-0.6B/ --adapter-path adapters --prompt "What is a surface?"
    """
    sampling = sampling_of(options)
    show = not as_json and len(prompts) < 2
    if _is_own(model) and adapter_path is None and _is_on_host(device):
        if system_prompt is not None:
            raise UsageError(f"--system-prompt is for a model with a chat template, and {model} is a run.")
        written, device = _with_own(Path(model), prompts or ("",), sampling, show), "host"
    else:
        device = load("torchane.generate.pretrained").host_device(device)
        written = _with_transformers(model, prompts or ("",), sampling, adapter_path, system_prompt, ignore_chat_template, device, show)
    if as_json:
        click.echo(json.dumps({**_described(written, sampling.seed), "device": device}))
        return
    if not show:
        for one in written:
            click.echo(f"{one.prompt}{one.text}\n")
    click.echo(speed_line(written, device), err=True)


def _is_own(model: str) -> bool:
    """Whether a folder is a run, or holds nothing else that could be told apart."""
    path = Path(model)
    return path.is_dir() and ((path / "run.json").exists() or not any((path / name).exists() for name in ("config.json", "adapter_config.json")))


def _is_on_host(device: str) -> bool:
    """Whether a run writes with PyTorch, which needs no transformers."""
    if device == "auto" and importlib.util.find_spec("transformers") is not None:
        device = load("torchane.generate.pretrained").host_device(device)
    return device in ("auto", "host")


def _with_own(path: Path, prompts: tuple[str, ...], sampling: Any, show: bool) -> list[Any]:
    runs, text = load("torchane.train.run_folder"), load("torchane.generate.text")
    model, tokenizer = runs.load_run_model(path), runs.load_tokenizer(path)
    written = []
    for number, prompt in enumerate(prompts):
        one = text.Written(prompt)
        pieces = text.continue_text(model, tokenizer, prompt, replace(sampling, seed=sampling.seed + number), one)
        if show:
            click.echo(prompt, nl=False)
        for piece in pieces:
            if show:
                click.echo(piece, nl=False)
        written.append(one)
    if show:
        click.echo()
    return written


def _with_transformers(
    target: str, prompts: tuple[str, ...], sampling: Any, adapter: Path | None, system: str | None, ignore_template: bool, device: str, show: bool
) -> list[Any]:
    pretrained = load("torchane.generate.pretrained")
    base, model = load_pretrained(target, adapter)
    is_talk = bool(base.require_tokenizer().chat_template) and not ignore_template and any(prompts)
    if system is not None and not is_talk:
        raise UsageError(f"--system-prompt is for a model with a chat template and a --prompt, and {target} has none or was told to ignore it.")
    texts = [pretrained.templated(base, _messages(prompt, system)) if is_talk else prompt for prompt in prompts]
    writer = pretrained.Writer(base, device, model)
    if show and not is_talk:
        click.echo(prompts[0], nl=False)
    written = writer.write(texts, sampling, is_templated=is_talk, tell=(lambda index, piece: click.echo(piece, nl=False)) if show else lambda index, piece: None)
    if show:
        click.echo()
    return [replace(one, prompt=f"{prompt}\n" if is_talk and not show else prompt) for one, prompt in zip(written, prompts, strict=True)]


def _messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    return [*([{"role": "system", "content": system}] if system is not None else []), {"role": "user", "content": prompt}]


def _described(written: list[Any], seed: int) -> dict[str, Any]:
    """The fields of docs/run-folder.md: of one prompt themselves, of several in `results`."""
    each = [
        {"prompt": one.prompt.removesuffix("\n"), "text": one.text, "tokens": one.tokens, "prompt_tokens": one.prompt_tokens, "end": one.end} for one in written
    ]  # fmt: skip
    total = max(one.prefill_s + one.decode_s for one in written)
    common = {"tokens_per_s": sum(one.tokens for one in written) / total if total else 0.0, **speed(written), "seed": seed}
    return {**each[0], **common} if len(each) == 1 else {"results": each, **common}
