"""A model or an adapter, written as others read it, with the commands that use it.

              hf        mlx              gguf            llama2c        peft      gguf-lora
    model     as it is  as it is         as it is        as it is       no        no
    adapter   merged    an adapter       merged          merged         adapter   adapter

Each format has a folder of its own, which appears when it is whole. What a target cannot hold is refused with a sentence.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torchane.convert import gguf, gguf_lora, gguf_tokenizer, hf, llama2c, llama2c_tokenizer, mlx, peft
from torchane.convert.adapter import Adapter, require_fits
from torchane.convert.files import new_folder
from torchane.convert.gguf_names import architecture_of
from torchane.convert.merge import merge
from torchane.convert.model import Model
from torchane.errors import UsageError

FORMATS = ("hf", "peft", "mlx", "gguf", "gguf-lora", "llama2c")


@dataclass(frozen=True)
class Written:
    """What was written, the commands that use it, and what one has to know besides."""

    format: str
    path: Path
    commands: tuple[str, ...]
    notes: tuple[str, ...] = ()


def export(target: str, out: Path, name: str, base: Model, adapter: Adapter | None = None, *, gguf_type: str = "f16") -> Written:
    """Writes out/TARGET. base: the model itself, or what the adapter belongs to. Raises UsageError, ParseError, OutputError."""
    if adapter is not None:
        require_fits(adapter, base)
        if target in ADAPTER_WRITERS:
            return ADAPTER_WRITERS[target](adapter, base, out / target, name)
        base = merge(base, adapter)
    if target in ("peft", "gguf-lora"):
        raise UsageError(f"{base.source} is a whole model, and {target} holds what is added to one. Export it with --to hf, mlx, gguf or llama2c.")
    if target == "gguf":
        return _gguf(base, out / target, name, gguf_type)
    return _llama2c(base, out / target) if target == "llama2c" else _folder(base, out / target, target)


def _folder(model: Model, path: Path, target: str) -> Written:
    with new_folder(path) as folder:
        hf.write(model, folder)
    if target == "mlx":
        return Written(target, path, (f"mlx_lm.generate --model {_quoted(path)} --prompt 'Hello'", f"mlx_lm.convert --hf-path {_quoted(path)} -q"))
    return Written(target, path, (f"AutoModelForCausalLM.from_pretrained({str(path)!r})", f"torchane generate {_quoted(path)} --prompt 'Hello'"))


def _gguf(model: Model, path: Path, name: str, gguf_type: str) -> Written:
    file = f"{name}-{gguf_type}.gguf"
    with new_folder(path) as folder:
        gguf.write(model, folder / file, gguf_type)
        (folder / "Modelfile").write_text(f"FROM ./{file}\n")
    place = _quoted(path / file)
    if "tokenizer.json" not in model.files:
        return Written("gguf", path, (), (f"{place} has no tokenizer, for the model has none: llama.cpp, Ollama and LM Studio load it only with one.",))
    commands = (f"ollama create {_ollama_name(name)} -f {_quoted(path / 'Modelfile')}", f"llama-cli -m {place} -p 'Hello'", f"lms import {place}")
    return Written("gguf", path, commands)


def _llama2c(model: Model, path: Path) -> Written:
    try:
        vocabulary = gguf_tokenizer.from_files(model.files, model.config, model.source)
        reason = "the model has none" if vocabulary is None else "run.c knows SentencePiece vocabularies only, and this one is byte-level"
    except UsageError as error:
        vocabulary, reason = None, str(error)
    notes: tuple[str, ...] = ()
    with new_folder(path) as folder:
        llama2c.write(model, folder / "model.bin", 0)
        llama2c.write(model, folder / "model-q80.bin", 2)
        if vocabulary is not None and vocabulary.scores is not None:
            llama2c_tokenizer.write(vocabulary.tokens, vocabulary.kinds, vocabulary.scores, folder / llama2c_tokenizer.NAME)
        else:
            notes = (f"There is no {llama2c_tokenizer.NAME}: {reason}.",)
    options = "" if notes else f" -z {_quoted(path / llama2c_tokenizer.NAME)}"
    return Written("llama2c", path, (f"./run {_quoted(path / 'model.bin')}{options}", f"./runq {_quoted(path / 'model-q80.bin')}{options}"), notes)


def _peft(adapter: Adapter, base: Model, path: Path, name: str) -> Written:
    with new_folder(path) as folder:
        peft.write(adapter, folder)
    place, notes = _folder_of(base)
    return Written("peft", path, (f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({place!r}), {str(path)!r})",), notes)


def _mlx(adapter: Adapter, base: Model, path: Path, name: str) -> Written:
    with new_folder(path) as folder:
        mlx.write(adapter, folder, base)
    place, notes = _folder_of(base)
    return Written("mlx", path, (f"mlx_lm.generate --model {_quoted(Path(place))} --adapter-path {_quoted(path)} --prompt 'Hello'",), notes)


def _folder_of(base: Model) -> tuple[str, tuple[str, ...]]:
    """(the base as transformers and mlx-lm are told it, what to do first): a file is none that they load."""
    if not Path(base.source).is_file():
        return base.source, ()
    return "BASE", (f"BASE is the base as a folder: torchane import {_quoted(Path(base.source))} --out BASE",)


def _gguf_lora(adapter: Adapter, base: Model, path: Path, name: str) -> Written:
    file = f"{name}-lora.gguf"
    takes_adapters = architecture_of(base).ollama_adapters
    with new_folder(path) as folder:
        gguf_lora.write(adapter, folder / file, base)
        if takes_adapters:
            source = Path(base.source).resolve() if Path(base.source).exists() else base.source  # Ollama would look beside the Modelfile
            (folder / "Modelfile").write_text(f"# FROM names the base: as Ollama calls it, or its GGUF in full precision.\nFROM {source}\nADAPTER ./{file}\n")
    is_gguf = Path(base.source).suffix == ".gguf"
    commands = [f"llama-cli -m {_quoted(Path(base.source)) if is_gguf else 'BASE.gguf'} --lora {_quoted(path / file)} -p 'Hello'"]
    notes = [] if is_gguf else [f"BASE.gguf is the base as GGUF: torchane export {_quoted(Path(base.source))} --to gguf"]
    if takes_adapters:
        commands.append(f"ollama create {_ollama_name(name)} -f {_quoted(path / 'Modelfile')}")
    else:
        notes.append(f"Ollama takes no adapter for {base.kind}: for it merge first, --to gguf.")
    return Written("gguf-lora", path, tuple(commands), tuple(notes))


ADAPTER_WRITERS = {"peft": _peft, "mlx": _mlx, "gguf-lora": _gguf_lora}


def parse_formats(text: str) -> Sequence[str]:
    """What --to says. Raises UsageError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise UsageError(f"--to {text}: {f'there is no format {unknown[0]}' if unknown else 'no format'}. Known: {', '.join(FORMATS)}.")
    return list(dict.fromkeys(names))


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _ollama_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name.lower()).strip("-.") or "model"


def bring(base: Model, adapter: Adapter | None, path: Path) -> Written:
    """Writes what was read as a folder of ours: a Hugging Face folder, or PEFT's for an adapter, checked against its base."""
    if adapter is not None:
        require_fits(adapter, base)
    elif "tokenizer.json" not in base.files:
        notes = ("It has no tokenizer: text needs one (--tokenizer tokenizer.bin for llama2.c).",)
        return replace(_folder(base, path, "hf"), notes=notes)
    if adapter is None:
        return _folder(base, path, "hf")
    if not adapter.modules:
        raise UsageError(f"{adapter.source} holds whole weights and no LoRA: merge it with torchane fuse.")
    written = _peft(replace(adapter, base=base.source), base, path, path.name)
    return replace(written, commands=(*written.commands, f"torchane generate {_quoted(Path(base.source))} --adapter-path {_quoted(path)} --prompt 'Hello'"))
