"""`torchane generate MODEL --prompt ...`: a model writes."""

import importlib.util
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from torchane.cli.options import Command, takes
from torchane.cli.signals import load
from torchane.cli.writing import load_pretrained, model_of, sampling_of, say_speed, speed, template_settings, whole_line
from torchane.errors import UsageError


@click.command("generate", cls=Command)
@click.argument("model", required=False)
@takes("generate")
def command(
    model: str | None, named: str | None, prompts: tuple[str, ...], adapter_path: Path | None, system_prompt: str | None, ignore_chat_template: bool,
    prefill_response: str | None, chat_template_config: str | None, extra_eos_token: tuple[str, ...], device: str, arithmetic: str, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Continue prompts with MODEL: a run, a Hugging Face folder, a .gguf, a llama2.c .bin, an adapter, or a name on the hub.

    The text ends where the model ends it, at a --stop, or after --max-tokens. A prompt for a model with a chat template is a message
    to it, unless --ignore-chat-template says otherwise.

    \b
      torchane generate runs/tiny-1 --prompt "Mira the brave fox" --temperature 0
      torchane generate Qwen3-0.6B/ --adapter-path adapters --prompt "What is a surface?"
    """
    sampling, target, settings = sampling_of(options), model_of(model, named), template_settings(chat_template_config)
    prompts = tuple(_read(prompt) for prompt in prompts) or ("",)
    show = not as_json and len(prompts) < 2
    talk = Talk(system_prompt, prefill_response, settings, ignore_chat_template)
    if _is_own(target) and adapter_path is None and not extra_eos_token and _is_on_host(device, arithmetic):
        if talk.flags:
            raise UsageError(f"{talk.flags[0]} is for a model with a chat template, and {target} is a run.")
        written, device = _with_own(Path(target), prompts, sampling, show), "host"
    else:
        device = load("torchane.generate.pretrained").host_device(device, arithmetic)
        written = _with_transformers(target, prompts, sampling, adapter_path, talk, {"extra_ends": extra_eos_token, "arithmetic": arithmetic}, device, show)
    if as_json:
        click.echo(json.dumps({**_described(written, sampling.seed), "device": device}))
        return
    if not show:
        for one in written:
            click.echo(f"{one.prompt}{one.text}\n")
    say_speed(written, device)


@dataclass(frozen=True)
class Talk:
    """What makes a message of a prompt. prefill: how the answer begins. settings: the template's."""

    system: str | None
    prefill: str | None
    settings: dict[str, Any]
    is_ignored: bool

    @property
    def flags(self) -> list[str]:
        """Those given that want a chat template."""
        given = {"--system-prompt": self.system is not None, "--prefill-response": self.prefill is not None, "--chat-template-config": bool(self.settings)}
        return [name for name, is_given in given.items() if is_given]

    def text(self, pretrained: Any, base: Any, prompt: str) -> str:
        begin = [{"role": "system", "content": self.system}] if self.system is not None else []
        return str(pretrained.templated(base, [*begin, {"role": "user", "content": prompt}], self.settings)) + (self.prefill or "")


def _read(prompt: str) -> str:
    return sys.stdin.read() if prompt == "-" else prompt


def _is_own(model: str) -> bool:
    """Whether a folder is a run, or holds nothing else that could be told apart."""
    path = Path(model)
    return path.is_dir() and ((path / "run.json").exists() or not any((path / name).exists() for name in ("config.json", "adapter_config.json")))


def _is_on_host(device: str, arithmetic: str) -> bool:
    """Whether a run writes with PyTorch, which needs no transformers."""
    if importlib.util.find_spec("transformers") is not None:
        device = load("torchane.generate.pretrained").host_device(device, arithmetic)
    return device in ("auto", "host")


def _with_own(path: Path, prompts: tuple[str, ...], sampling: Any, show: bool) -> list[Any]:
    runs, text = load("torchane.train.run_folder"), load("torchane.generate.text")
    model, tokenizer = runs.load_run_model(path), runs.load_tokenizer(path)
    written = []
    for number, prompt in enumerate(prompts):
        one = text.Written(prompt)
        pieces = text.continue_text(model, tokenizer, prompt, replace(sampling, seed=sampling.seed + number), one)
        with whole_line(show):
            if show:
                click.echo(prompt, nl=False)
            for piece in pieces:
                if show:
                    click.echo(piece, nl=False)
        written.append(one)
    return written


def _with_transformers(
    target: str, prompts: tuple[str, ...], sampling: Any, adapter: Path | None, talk: Talk, settings: dict[str, Any], device: str, show: bool
) -> list[Any]:
    pretrained = load("torchane.generate.pretrained")
    base, model = load_pretrained(target, adapter)
    is_talk = bool(base.require_tokenizer().chat_template) and not talk.is_ignored and any(prompts)
    if talk.flags and not is_talk:
        raise UsageError(f"{talk.flags[0]} is for a model with a chat template and a --prompt, and {target} has none or was told to ignore it.")
    texts = [talk.text(pretrained, base, prompt) if is_talk else prompt for prompt in prompts]
    writer = pretrained.Writer(base, device, model, **settings)
    with whole_line(show):
        if show and not is_talk:
            click.echo(prompts[0], nl=False)
        written = writer.write(texts, sampling, is_templated=is_talk, tell=(lambda index, piece: click.echo(piece, nl=False)) if show else lambda index, piece: None)
    return [replace(one, prompt=f"{prompt}\n" if is_talk and not show else prompt) for one, prompt in zip(written, prompts, strict=True)]


def _described(written: list[Any], seed: int) -> dict[str, Any]:
    """The fields of docs/run-folder.md: of one prompt themselves, of several in `results`."""
    each = [
        {"prompt": one.prompt.removesuffix("\n"), "text": one.text, "tokens": one.tokens, "prompt_tokens": one.prompt_tokens, "end": one.end} for one in written
    ]  # fmt: skip
    total = max(one.prefill_s + one.decode_s for one in written)
    common = {"tokens_per_s": sum(one.tokens for one in written) / total if total else 0.0, **speed(written), "seed": seed}
    return {**each[0], **common} if len(each) == 1 else {"results": each, **common}
