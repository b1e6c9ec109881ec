"""A model that one already has, with its tokenizer: transformers' modules, whatever the files are.

    Hugging Face folder (sharded, bf16, tied heads), run folder ─┐
    llama2.c .bin, .gguf ────────────────────────────────────────┼─► load_base ─► Base(model, tokenizer, path, kind)
    a name on the hub, where there is a network ─────────────────┘

Weights keep the type that their file has, once. What transformers would fill with random numbers (a weight that no file
holds) is refused, and so is what only unpickling or foreign code could load.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from torchane.convert import recognize
from torchane.convert.files import is_pickle
from torchane.convert.model import EMBEDDING, Model
from torchane.errors import ParseError, RunFolderError, UsageError, shown
from torchane.finetune.adapters import ADAPTER_CONFIG
from torchane.finetune.extras import quiet_transformers, require
from torchane.models.files import read_json
from torchane.models.folder import CONFIG, INDEX, PICKLED, TOKENIZER, WEIGHTS
from torchane.models.tensors import DTYPES, TensorFile
from torchane.train.checkpoint import state_of
from torchane.train.run_folder import RUN, TRAINING

TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
#: What a snapshot of the hub is asked for: no pickles, no other frameworks' weights.
_SNAPSHOT = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Base:
    """model: a transformers PreTrainedModel in evaluation mode. tokenizer: its own, None where the files bring none.
    path: the folder or file. kind: "folder", "run", "llama2c", "gguf" or "hub"."""

    model: Any
    tokenizer: Any
    path: Path
    kind: str

    def require_tokenizer(self) -> Any:
        """The tokenizer. Raises UsageError where the files bring none."""
        return require_tokenizer(self.path, self.tokenizer)


def require_tokenizer(path: Path, tokenizer: Any) -> Any:
    """The tokenizer. Raises UsageError where the model at path brought none."""
    if tokenizer is None:
        raise UsageError(
            f"{path} has no tokenizer ({', '.join(TOKENIZER_FILES[:3])}), and text needs one. Copy the tokenizer's files of "
            "the model beside its weights."
        )
    return tokenizer


def load_base(path_or_name: str | Path, *, dtype: torch.dtype | None = None) -> Base:
    """Loads a model and its tokenizer. dtype: of the weights; None keeps the file's own.
    Raises UsageError where there is nothing to load or a package is missing, RunFolderError for files that are damaged,
    incomplete, pickled, or of a form that is not read.
    """
    path, kind = locate(path_or_name)
    if kind in ("llama2c", "gguf"):
        return _load_file(path, kind, dtype)
    check_folder(path)
    return Base(_load_model(path, dtype), load_tokenizer(path), path, kind)


def locate(path_or_name: str | Path) -> tuple[Path, str]:
    """Where the files are and of what kind, fetched from the hub if need be. Raises UsageError, RunFolderError."""
    path = Path(path_or_name)
    if path.is_dir():
        return path, "run" if (path / RUN).exists() else "folder"
    if path.is_file():
        kinds = {".bin": "llama2c", ".gguf": "gguf"}
        if path.suffix not in kinds:
            raise UsageError(f"{path} is a file, and a model is a Hugging Face folder, a run folder, a llama2.c .bin or a .gguf.")
        if path.suffix == ".bin" and _is_pickle(path):
            raise RunFolderError(_pickled(path.parent, path.name))
        return path, kinds[path.suffix]
    name = str(path_or_name)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise UsageError(f"There is no model {name}. Give a folder with a {CONFIG}, a .gguf, a llama2.c .bin, or a name on the hub (OWNER/NAME).")
    return _fetch(name), "hub"


def _fetch(name: str) -> Path:
    """The snapshot of a model on the hub, from this machine's cache where there is no network. Raises UsageError."""
    hub = require("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(_SNAPSHOT)))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"There is no folder {name} here, and the hub did not give a model of that name ({reason}). Without a network, copy the "
            f"model's folder ({CONFIG}, *.safetensors, tokenizer files) to this machine and give its path."
        ) from error


def check_folder(path: Path) -> None:
    """What can be known of a folder before anything is loaded. Raises RunFolderError naming the file."""
    if not (path / CONFIG).exists():
        if (path / ADAPTER_CONFIG).exists():
            raise RunFolderError(f"{path} holds an adapter, and not a model. Give the model that it was trained on, and this folder as --adapter-path.")
        raise RunFolderError(f"{path / CONFIG} does not exist, and without it nobody knows what model this is. Give the folder of a model in Hugging Face's layout.")
    config = read_json(path / CONFIG)
    if config.get("auto_map"):
        raise RunFolderError(f"{path / CONFIG} wants Python code of its own to run (auto_map), which is not done. Use a model that transformers itself knows.")
    quantized = next((key for key in ("quantization_config", "quantization") if config.get(key)), None)
    if quantized:
        raise RunFolderError(f"{path}: its weights are quantised ({quantized} in {CONFIG}), and models are read in bf16, fp16 or fp32. Use the unquantised base.")
    for shard in weight_files(path):
        check_shard(shard)
    if (path / TRAINING).exists() and (path / WEIGHTS).exists():
        _check_run(path)


def _check_run(path: Path) -> None:
    step = state_of(TensorFile(path / TRAINING)).step
    written = TensorFile(path / WEIGHTS).about.get("step", step)
    if written != step:
        raise RunFolderError(
            f"{path / WEIGHTS} is of step {shown(written)} and the checkpoint beside it of step {step}: the run was ended between the two. "
            f"`torchane train --resume {path}` writes it again."
        )


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model's folder. Raises RunFolderError where one is missing or they are of another form."""
    if (path / WEIGHTS).exists():
        return [path / WEIGHTS]
    if (path / INDEX).exists():
        held = read_json(path / INDEX).get("weight_map")
        if not isinstance(held, Mapping) or not held or not all(isinstance(name, str) for name in held.values()):
            raise RunFolderError(f"{path / INDEX} has no weight_map. It is damaged: copy it from the model's origin again.")
        shards = [path / name for name in sorted(set(held.values()))]
        missing = [shard.name for shard in shards if not shard.exists()]
        if missing:
            raise RunFolderError(f"{path}: {', '.join(missing)} of {len(shards)} files with weights missing, which {INDEX} names. Copy them from the model's origin.")
        return shards
    pickles = sorted(each.name for pattern in (PICKLED, "pytorch_model*.bin", "*.pt", "*.pth") for each in path.glob(pattern))
    if pickles:
        raise RunFolderError(_pickled(path, pickles[0]))
    raise RunFolderError(f"{path} has a {CONFIG} and no {WEIGHTS} or {INDEX}. Copy the model's weights there.")


def check_shard(path: Path) -> None:
    """Raises RunFolderError where a safetensors file is cut short, damaged in its header, or quantised."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            kinds = {file.get_slice(name).get_dtype() for name in names}
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}. It is cut short or damaged: copy it from the model's origin again.") from error
    if not kinds <= set(DTYPES):
        odd = ", ".join(sorted(kinds - set(DTYPES)))
        raise RunFolderError(f"{path} holds weights of type {odd}, which are quantised. Use the unquantised base.")


def fingerprint(path: Path) -> str:
    """SHA-256 that tells a base from another: names, sizes, and first and last MiB of its config and weights."""
    total = hashlib.sha256()
    for file in [path] if path.is_file() else [path / CONFIG, *weight_files(path)]:
        size = file.stat().st_size
        total.update(f"{file.name} {size}\n".encode())
        with open(file, "rb") as opened:
            total.update(opened.read(_SAMPLE_BYTES))
            opened.seek(max(0, size - _SAMPLE_BYTES))
            total.update(opened.read(_SAMPLE_BYTES))
    return total.hexdigest()


def _pickled(folder: Path, name: str) -> str:
    return (
        f"{folder / name} is a pickle, which can run any code when it is read, and is never loaded. Convert it where you trust it: "
        f"AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(NEW)."
    )


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        return is_pickle(file.read(4))


def _load_model(path: Path, dtype: torch.dtype | None, **more: Any) -> Any:
    """transformers' own class for a folder. Raises RunFolderError where weights and config do not fit."""
    transformers = require("transformers")
    with quiet_transformers():
        try:
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype or "auto", local_files_only=True, trust_remote_code=False, output_loading_info=True,
                ignore_mismatched_sizes=True, **more,  # it tells them, and require_complete names them
            )  # fmt: skip
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
            raise RunFolderError(f"{path}: transformers cannot load it: {str(error).strip()[:600]}") from error
    require_complete(path, found)
    return model.eval()


def require_complete(path: Path, found: Mapping[str, Any]) -> None:
    """found: what transformers says of a loading. Raises RunFolderError where it filled a weight with random numbers or left one out."""
    missing, extra, wrong = (sorted(map(str, found.get(key) or ())) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    complaints = [f"{name} is missing" for name in missing] + [f"{name} belongs to no part of the model" for name in extra]
    complaints += [f"{name} has another shape than {CONFIG} says" for name in wrong]
    if complaints:
        more = f", and {len(complaints) - 3} more" if len(complaints) > 3 else ""
        raise RunFolderError(f"{path}: weights and {CONFIG} do not fit: {'; '.join(complaints[:3])}{more}. Both must come from the same model.")


def load_tokenizer(path: Path) -> Any:
    """The folder's tokenizer, None where it brings none. Raises RunFolderError where it is damaged."""
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        return None
    transformers = require("transformers")
    with quiet_transformers():
        try:
            if (path / RUN).exists() or not (path / "tokenizer_config.json").exists() and (path / TOKENIZER).exists():
                return _run_tokenizer(transformers, path)
            return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except RunFolderError:
            raise
        except Exception as error:  # tokenizers raises plain Exception for a damaged file
            raise RunFolderError(f"{path}: its tokenizer cannot be loaded: {str(error).strip()[:400]}. Copy its files from the model's origin again.") from error


def _run_tokenizer(transformers: Any, path: Path) -> Any:
    """A tokenizer.json alone: the special tokens are those that config.json names by number, else the end of a text of ours."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / TOKENIZER))
    config = read_json(path / CONFIG)
    for role in ("bos", "eos"):
        number = config.get(f"{role}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        token = tokenizer.convert_ids_to_tokens(number) if isinstance(number, int) and 0 <= number < len(tokenizer) else None
        if token is None and "<|endoftext|>" in tokenizer.get_vocab():
            token = "<|endoftext|>"
        if token is not None:
            setattr(tokenizer, f"{role}_token", token)
    return tokenizer


@dataclass(frozen=True)
class Outline:
    """What is known of a model before its weights are loaded. config: transformers'. tokenizer: None where the files bring none. weight_bytes: that its weights will take."""

    config: Any
    tokenizer: Any
    weight_bytes: int


def outline(path: Path) -> Outline:
    """Of a folder or a file. Raises RunFolderError, UsageError."""
    transformers = require("transformers")
    if path.is_file():
        held = _held(path)
        numbers = sum(math.prod(shape) for shape in held.weights.shapes.values())
        return Outline(transformers.AutoConfig.for_model(**held.config), _tokenizer_of(held, transformers), numbers * _own_dtype(held).itemsize)
    check_folder(path)
    with quiet_transformers():
        try:
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise RunFolderError(f"{path}: transformers does not know what its {CONFIG} says: {str(error).strip()[:600]}") from error
    return Outline(config, load_tokenizer(path), sum(file.stat().st_size for file in weight_files(path)))


def _held(path: Path) -> Model:
    """A model in one file, whose weights are read when they are asked for. Raises RunFolderError."""
    try:
        return recognize.read_model(path)
    except ParseError as error:
        raise RunFolderError(str(error)) from error


def _load_file(path: Path, kind: str, dtype: torch.dtype | None) -> Base:
    """A model in one file, by its reader in torchane.convert, as transformers' own module. Raises RunFolderError, UsageError."""
    transformers = require("transformers")
    held = _held(path)
    try:
        own = _own_dtype(held)
        weights = {name: weight.to(dtype or own) for name, weight in held.weights.items()}
    except ParseError as error:
        raise RunFolderError(str(error)) from error
    config = transformers.AutoConfig.for_model(**held.config)
    with quiet_transformers():
        model, found = getattr(transformers, held.config["architectures"][0]).from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype or own, output_loading_info=True
        )
    require_complete(path, found)
    return Base(model.eval(), _tokenizer_of(held, transformers), path, kind)


def _own_dtype(held: Model) -> torch.dtype:
    """What a file's matrices are; bf16 for GGUF's blocks of 8 bits."""
    return torch.bfloat16 if held.quantised == "Q8_0" else held.weights[EMBEDDING].dtype


def _tokenizer_of(held: Model, transformers: Any) -> Any:
    """The tokenizer that a file brings, None where it brings none."""
    if TOKENIZER not in held.files:
        return None
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        for name, content in held.files.items():
            (Path(folder) / name).write_bytes(content)
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
