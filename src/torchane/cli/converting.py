"""What export, fuse and import have in common: a path or a name becomes a model or an adapter with its base; results are told."""

import json
from pathlib import Path
from typing import Any

import click

from torchane.cli.signals import load
from torchane.errors import UsageError


def read_model(path: Path, tokenizer: Path | None = None) -> Any:
    """A Model (convert/model.py); of a run folder, the weights of its checkpoint. Raises ParseError, UsageError, RunFolderError."""
    recognize = load("torchane.convert.recognize")
    if recognize.kind_of(path) != "run" or tokenizer is not None:
        return recognize.read_model(path, tokenizer)
    runs = load("torchane.train.run_folder")
    own = runs.load_run_model(path)
    has_text = (path / "tokenizer.json").exists()
    return load("torchane.convert.native").model_of(own, runs.load_tokenizer(path) if has_text else None, str(path))


def read_with_base(path: Path, model: str | None, tokenizer: Path | None) -> tuple[Any, Any]:
    """(Model, Adapter or None): the base of an adapter, or the model itself. Raises ParseError, UsageError."""
    recognize = load("torchane.convert.recognize")
    kind = recognize.kind_of(path)
    if kind not in recognize.ADAPTERS:
        if model is not None:
            raise UsageError(f"--model names the base of an adapter, and {path} is a whole model ({kind}).")
        return read_model(path, tokenizer), None
    if tokenizer is not None:
        raise UsageError(f"--tokenizer is for a .bin file of llama2.c, and {path} is an adapter.")
    base = read_base(path, model, None if kind == "gguf-lora" else recognize.base_of(path))
    adapter = recognize.read_adapter(path, base)
    found = load("torchane.finetune.quantize").recorded(path) if path.is_dir() and (path / "training.json").exists() else None
    if found is not None:
        base, told = load("torchane.finetune.quantize").round_model(base, found)
        click.echo(told, err=True)
    return base, adapter


def read_base(adapter: Path, model: str | None, named: str | None) -> Any:
    """The Model that an adapter belongs to: what --model says, else what the adapter itself names. Raises UsageError."""
    if model is None and named is None:
        raise UsageError(f"{adapter} does not say which model it belongs to: name it with --model.")
    wanted = model or named or ""
    try:
        return read_model(load("torchane.finetune.models").locate(wanted)[0])
    except UsageError as error:
        raise error if model else UsageError(f"{adapter} says that it belongs to {wanted}. {error} Or name the base with --model.") from error


def tell(written: list[Any], *, as_json: bool) -> None:
    """Paths, notes and the commands that use them."""
    for one in written:
        click.echo(f"{one.path}", err=as_json)
        for note in one.notes:
            click.echo(f"  {note}", err=as_json)
        for command in one.commands:
            click.echo(f"  {command}", err=as_json)
    if as_json:
        click.echo(json.dumps({"written": [
            {"format": one.format, "path": str(one.path), "commands": list(one.commands), "notes": list(one.notes)} for one in written
        ]}))  # fmt: skip
