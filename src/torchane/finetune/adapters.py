"""What of a model is trained: PEFT's LoRA or DoRA layers in its last blocks, or those blocks themselves.

    model.layers.0 ... model.layers.27        the blocks: the ModuleList of config.num_hidden_layers modules
                       └── last num_layers ── every linear layer of them, or `keys` ─► LoraConfig ─► peft's model

The layers, their initial numbers and the adapter's folder are PEFT's; what is chosen, and that scale is alpha / rank, is mlx-lm's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from torchane.errors import RunFolderError, UsageError, nearest, shown
from torchane.finetune.extras import quiet_transformers, require
from torchane.finetune.settings import LoraParameters, LoraSettings

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Blocks:
    """path: of the list, as in model.layers; modules: its blocks, the first one first."""

    path: str
    modules: Sequence[nn.Module]


def blocks_of(model: nn.Module) -> Blocks:
    """The repeated blocks of a transformers model. Raises UsageError where no list has as many modules as its config says."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config  # type: ignore[union-attr, operator]
    count = getattr(config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return Blocks(name, list(module))
    raise UsageError(f"{type(model).__name__} has no list of {count} blocks, and fine-tuning is told in blocks. Use --fine-tune-type full in your own loop.")


def first_of(blocks: int, num_layers: int) -> int:
    """The index of the first block that is trained, where the last num_layers are; -1: all of them."""
    return 0 if num_layers == -1 else max(0, blocks - num_layers)


def linear_kinds() -> tuple[type, ...]:
    """What counts as a linear layer: torch's, and the transposed one of GPT-2."""
    return (nn.Linear, require("transformers.pytorch_utils").Conv1D)


def targets_of(model: nn.Module, num_layers: int, keys: Sequence[str] | None) -> list[str]:
    """The full names of the modules that get an adapter, in the model's order. Raises UsageError for a key that names none."""
    blocks = blocks_of(model)
    first, kinds = first_of(len(blocks.modules), num_layers), (*linear_kinds(), nn.Embedding)
    relative = {name: module for block in blocks.modules for name, module in block.named_modules() if isinstance(module, kinds)}
    chosen = set(relative) if keys is None else set(keys)
    absolute = {name for name, module in model.named_modules() if name in chosen and isinstance(module, kinds)}
    unknown = sorted(chosen - set(relative) - absolute)
    if unknown:
        raise UsageError(f"lora_parameters: keys: no layer is called {unknown[0]}{nearest(unknown[0], relative)}. In a block are {', '.join(sorted(relative))}.")
    found = absolute | {
        f"{blocks.path}.{index}.{name}" for index in range(first, len(blocks.modules))
        for name, module in blocks.modules[index].named_modules() if name in chosen and isinstance(module, kinds)
    }  # fmt: skip
    return [name for name, _ in model.named_modules() if name in found]


def lora_config(model: nn.Module, settings: LoraSettings, base: str) -> Any:
    """PEFT's config of an adapter. Where the names of the modules and their blocks say which they are, it says no more than those, as
    other tools expect it."""
    parameters = settings.lora_parameters
    targets = targets_of(model, settings.num_layers, parameters.keys)
    names, layers = _short(model, targets)
    alpha = parameters.scale * parameters.rank
    kinds = {type(model.get_submodule(name)) for name in targets}
    return require("peft").LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=base, r=parameters.rank, lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=parameters.dropout, target_modules=names, layers_to_transform=layers, use_dora=settings.fine_tune_type == "dora", bias="none",
        fan_in_fan_out=bool(kinds) and not kinds & {nn.Linear, nn.Embedding},
    )  # fmt: skip


def _short(model: nn.Module, targets: Sequence[str]) -> tuple[list[str], list[int] | None]:
    """(target_modules, layers_to_transform) that name exactly the targets; their full names where nothing shorter does."""
    blocks = blocks_of(model)
    parts = [name.removeprefix(f"{blocks.path}.").partition(".") for name in targets if name.startswith(f"{blocks.path}.")]
    layers = sorted({int(index) for index, _, _ in parts})
    if len(parts) == len(targets):
        inside = sorted({rest for _, _, rest in parts})
        everything = [name for name, _ in model.named_modules()]
        for names in (sorted({rest.rpartition(".")[2] for rest in inside}), inside):
            meant = {
                each for each in everything for index in layers
                if each.startswith(f"{blocks.path}.{index}.") and any(each.endswith(f".{name}") for name in names)
            }  # fmt: skip
            if meant == set(targets):
                return names, None if len(layers) == len(blocks.modules) and _only_in_blocks(everything, names, blocks.path) else layers
    return sorted(targets), None


def _only_in_blocks(everything: Sequence[str], names: Sequence[str], path: str) -> bool:
    return all(each.startswith(f"{path}.") for each in everything for name in names if each == name or each.endswith(f".{name}"))


def add_adapter(model: nn.Module, settings: LoraSettings, base: str) -> nn.Module:
    """PEFT's model around a base whose weights are frozen. The adapter is float32, its numbers drawn from the seed."""
    peft = require("peft")
    _let_dora_be_traced()
    config = lora_config(model, settings, base)
    model.name_or_path = base  # which PEFT writes, whatever the config says
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(settings.seed)
        made: nn.Module = peft.get_peft_model(model, config)
    return made


def adapted(model: nn.Module, path: Path) -> nn.Module:
    """The base with the adapter of a folder of PEFT's, frozen. Raises RunFolderError where it is none, damaged, or of another base."""
    if not (path / ADAPTER_CONFIG).is_file():
        whole = " It holds a whole model: give it as --model." if (path / "config.json").exists() else ""
        raise RunFolderError(f"{path} holds no adapter: it has no {ADAPTER_CONFIG}.{whole or ' Give the --adapter-path of a run.'}")
    peft = require("peft")
    try:
        config = peft.PeftConfig.from_pretrained(str(path))
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise RunFolderError(f"{path / ADAPTER_CONFIG} is no adapter of PEFT's: {str(error).strip()[:300]}.") from error
    if config.peft_type != "LORA":
        raise RunFolderError(f"{path} is an adapter of type {shown(config.peft_type)}, and torchane takes LoRA and DoRA.")
    _let_dora_be_traced()
    config.inference_mode = False
    with quiet_transformers():
        try:
            made: nn.Module = peft.get_peft_model(model, config)
        except ValueError as error:
            raise RunFolderError(f"{path} does not fit this model: {str(error).strip()[:300]}") from error
    load_adapter_file(made, path / ADAPTER)
    return made.requires_grad_(False)


def _let_dora_be_traced() -> None:
    """PEFT asks each weight for the module of its class, to know torchao's, and makes parameters of transposed ones; Dynamo traces
    neither. Ours are plain weights, which it would give back as they are."""
    dora = require("peft.tuners.lora.dora")
    dora.dequantize_module_weight, dora.transpose = _weight_of, _turned


def _weight_of(module: nn.Module) -> Any:
    return module.weight


def _turned(weight: torch.Tensor, fan_in_fan_out: bool) -> torch.Tensor:
    return weight.T if fan_in_fan_out else weight


def free_blocks(model: nn.Module, num_layers: int) -> nn.Module:
    """Full fine-tuning as mlx-lm does it: the last blocks are trained, the rest is frozen. Weights are float32 (what an update adds is lost
    in 16 bits)."""
    model.float().requires_grad_(False)
    blocks = blocks_of(model).modules
    for block in blocks[first_of(len(blocks), num_layers) :]:
        block.requires_grad_(True)
    return model


def is_adapted(model: nn.Module) -> bool:
    """Whether PEFT's layers are in it."""
    return hasattr(model, "peft_config")


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name, those of an adapter as its file has them."""
    return {_in_file(name): param for name, param in model.named_parameters() if param.requires_grad}


def _in_file(name: str) -> str:
    """PEFT leaves the adapter's name out of its files."""
    return name.replace(".default.weight", ".weight").replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector").replace("_A.default", "_A").replace("_B.default", "_B")


def load_adapter_file(model: nn.Module, path: Path) -> None:
    """Puts the weights of a file (PEFT's adapter_model.safetensors) into the trained parameters. Raises RunFolderError, with nothing
    changed, where it is damaged, a pickle, mlx-lm's, or an adapter of another base."""
    own = trained(model)
    stored = read_adapter(path)
    complaints = [f"{name} is missing" for name in own if name not in stored]
    complaints += [f"{shown(name)} belongs to no layer that is trained" for name in stored if name not in own]
    complaints += [
        f"{name} is {tuple(stored[name].shape)} and the model needs {tuple(own[name].shape)}"
        for name in own if name in stored and stored[name].shape != own[name].shape
    ]  # fmt: skip
    if complaints:
        more = f", and {len(complaints) - 3} more" if len(complaints) > 3 else ""
        raise RunFolderError(
            f"{path} does not fit this model and these settings: {'; '.join(complaints[:3])}{more}. It was trained on another base, or with another "
            "rank, type or choice of layers."
        )
    with torch.no_grad():
        for name, param in own.items():
            param.copy_(stored[name])


def read_adapter(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises RunFolderError; nothing is unpickled."""
    if not path.is_file():
        raise RunFolderError(f"There is no {path}. Give the file with an adapter's weights ({ADAPTER}).")
    if path.suffix != ".safetensors":
        raise RunFolderError(f"{path} is no safetensors file, and others (pickles) are never loaded: they can run any code.")
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}. It is cut short or damaged.") from error
    if any(name.endswith((".lora_a", ".lora_b")) for name in stored):
        raise RunFolderError(f"{path} is an adapter of mlx-lm. `torchane import` makes one of PEFT's of it.")
    if not all(bool(torch.isfinite(value).all()) for value in stored.values()):
        raise RunFolderError(f"{path} holds numbers that are not finite: its training went wrong, or it is damaged.")
    return stored


def adapter_numbers(parameters: LoraParameters, shapes: Sequence[tuple[int, int]], *, dora: bool) -> int:
    """How many numbers an adapter of these (out, in) layers has."""
    return sum(parameters.rank * (out + into) + (out if dora else 0) for out, into in shapes)
