"""What a path holds: a model or an adapter, and in which format; and the one or the other, read."""

from pathlib import Path

from torchane.convert import gguf, gguf_lora, hf, llama2c, mlx, peft
from torchane.convert.adapter import Adapter, without_unchanged
from torchane.convert.files import PICKLED, open_input, read_json
from torchane.convert.gguf_file import MAGIC
from torchane.convert.model import Model
from torchane.errors import ParseError, UsageError

RUN = "run.json"
MODELS, ADAPTERS = ("hf", "gguf", "llama2c"), ("peft", "mlx", "gguf-lora")


def kind_of(path: Path) -> str:
    """One of "run", MODELS, ADAPTERS. Raises UsageError where nothing is there, ParseError where it is nothing known."""
    if not path.exists():
        raise UsageError(f"{path} does not exist. Give a folder of a model, a run or an adapter, a .gguf file, or a .bin file of llama2.c.")
    if path.is_file():
        return _kind_of_file(path)
    if peft.describes(path):
        return "peft"
    if mlx.describes(path):
        return "mlx"
    if (path / RUN).is_file():
        return "run"
    if hf.is_folder(path):
        return "hf"
    for name in sorted(path.glob("*.gguf")):
        raise ParseError(f"{path} is a folder with {name.name}: give that file.")
    for pattern in ("*.bin", "*.pt", "*.pth"):
        for name in sorted(path.glob(pattern)):
            raise ParseError(f"{name} {PICKLED}" if _is_pickle(name) else f"{path} is a folder with {name.name}: give that file.")
    raise ParseError(f"{path} has neither config.json nor adapter_config.json: it is no folder of a model, a run or an adapter.")


def _kind_of_file(path: Path) -> str:
    with open_input(path) as file:
        start = file.read(8)
    if start[:4] == MAGIC:
        return "gguf-lora" if gguf_lora.is_adapter(path) else "gguf"
    if path.suffix == ".safetensors":
        raise ParseError(f"{path} is the weights of a model or an adapter: give the folder that holds them with their config.")
    if path.suffix in (".npz", ".json", ".yaml"):
        raise ParseError(f"{path} is no model: give a folder, a .gguf file, or a .bin file of llama2.c.")
    return "llama2c"


def _is_pickle(path: Path) -> bool:
    try:
        open_input(path).close()
    except ParseError:
        return True
    return False


def read_model(path: Path, tokenizer: Path | None = None) -> Model:
    """A model of any format but a run. tokenizer: of llama2.c. Raises ParseError, UsageError."""
    kind = kind_of(path)
    if tokenizer is not None and kind != "llama2c":
        raise UsageError(f"--tokenizer is for a .bin file of llama2.c, and {path} is {kind}, which brings its own.")
    if kind == "llama2c":
        return llama2c.read(path, tokenizer)
    if kind == "gguf":
        return gguf.read(path)
    if kind in ("hf", "run"):
        return hf.read(path)
    raise UsageError(f"{path} is an adapter ({kind}), and a model is wanted here.")


def read_adapter(path: Path, base: Model | None) -> Adapter:
    """base: its model, where it is known. Raises ParseError, UsageError."""
    kind = kind_of(path)
    if kind == "peft":
        return peft.read(path) if base is None else without_unchanged(peft.read(path), base)
    if kind == "mlx":
        return mlx.read(path, base)
    if kind == "gguf-lora":
        if base is None:
            raise UsageError(f"{path} does not say how many heads its model has: name its base with --model.")
        return gguf_lora.read(path, base)
    raise UsageError(f"{path} is a model ({kind}), and an adapter is wanted here.")


def base_of(path: Path) -> str | None:
    """What an adapter's folder says it was trained on."""
    config = read_json(path / peft.CONFIG)
    named = config.get("base_model_name_or_path" if "peft_type" in config else "model")
    return named if isinstance(named, str) and named else None
