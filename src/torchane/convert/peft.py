"""Adapters of Hugging Face's PEFT: LoRA and DoRA, rank and alpha by module, rsLoRA, embeddings, modules trained entirely.

    adapter_config.json  adapter_model.safetensors      base_model.model.MODULE.lora_A.weight [r, in], .lora_B.weight [out, r],
                                                        .lora_embedding_A, .lora_embedding_B, .lora_magnitude_vector

A setting that changes what an adapter computes and is not known here is refused by name. Source: huggingface/peft, tuners/lora.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from torchane.convert.adapter import Adapter, LowRank, require_no_whole
from torchane.convert.files import PICKLED, read_json
from torchane.convert.hf import read_tensor, tensor_shapes
from torchane.errors import ParseError, UsageError, shown
from torchane.models.files import write_json

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
_PARTS = {
    ".lora_A.weight": "a", ".lora_B.weight": "b", ".lora_embedding_A": "a", ".lora_embedding_B": "b", ".lora_magnitude_vector": "m",
    ".lora_magnitude_vector.weight": "m",
}  # fmt: skip
#: Settings that say where an adapter is or how it was trained, not what it computes beyond its tensors.
_HARMLESS = {
    "task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules",
    "exclude_modules", "fan_in_fan_out", "modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "use_rslora",
    "use_dora", "init_lora_weights", "runtime_config", "ensure_weight_tying", "peft_version", "megatron_core", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "qalora_group_size", "velora_config",
}  # fmt: skip
#: init_lora_weights that write to the base, whose adapters mean nothing beside the base as it was.
_CHANGING = re.compile(r"pissa|olora|corda|loftq|lora_ga|orthogonal", re.IGNORECASE)


def read(folder: Path) -> Adapter:
    """Raises ParseError for a damaged folder or a pickle, UsageError for settings that are not known here."""
    config = read_json(folder / CONFIG)
    _require_known(config, folder)
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        raise ParseError(f"{folder / PICKLE} {PICKLED}")
    path = folder / WEIGHTS
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    embeddings: set[str] = set()
    for name in tensor_shapes(path):
        if not name.startswith(PREFIX):
            raise ParseError(f"{path}: {shown(name)} does not begin with {PREFIX}; it is no adapter of PEFT.")
        own = name.removeprefix(PREFIX)
        ending = next((ending for ending in _PARTS if own.endswith(ending)), None)
        if ending is None:
            whole[own.replace(".modules_to_save", "").replace(".base_layer", "")] = read_tensor(path, name)
            continue
        parts.setdefault(own.removesuffix(ending), {})[_PARTS[ending]] = read_tensor(path, name)
        if "embedding" in ending:
            embeddings.add(own.removesuffix(ending))
    modules = {name: _module(name, part, config, name in embeddings, path) for name, part in parts.items()}
    if not modules and not whole:
        raise ParseError(f"{path} holds no tensors.")
    return Adapter(modules, config.get("base_model_name_or_path"), float(config.get("lora_dropout") or 0), whole, str(folder))


def write(adapter: Adapter, folder: Path) -> None:
    """Into an existing, empty folder, as PEFT's save_pretrained would. Raises UsageError for what no LoRA of PEFT holds."""
    require_no_whole(adapter, "PEFT")
    first = next(iter(adapter.modules.values()))
    rank, alpha = first.rank, _alpha(first)
    ranks = {name: module.rank for name, module in adapter.modules.items() if module.rank != rank}
    alphas = {name: _alpha(module) for name, module in adapter.modules.items() if _alpha(module) != alpha}
    targets, layers = _targets(adapter)
    write_json(folder / CONFIG, {
        "alpha_pattern": alphas, "auto_mapping": None, "base_model_name_or_path": adapter.base, "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "layers_pattern": None, "layers_to_transform": layers, "lora_alpha": alpha,
        "lora_dropout": adapter.dropout, "modules_to_save": None, "peft_type": "LORA", "r": rank, "rank_pattern": ranks, "revision": None,
        "target_modules": targets, "task_type": "CAUSAL_LM", "use_dora": adapter.is_dora, "use_rslora": False,
    })  # fmt: skip
    save_file(dict(sorted(tensors(adapter).items())), folder / WEIGHTS, {"format": "pt"})


def tensors(adapter: Adapter) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, module in adapter.modules.items():
        endings = (".lora_embedding_A", ".lora_embedding_B") if module.is_embedding else (".lora_A.weight", ".lora_B.weight")
        found[f"{PREFIX}{name}{endings[0]}"] = module.a.contiguous()
        found[f"{PREFIX}{name}{endings[1]}"] = module.b.contiguous()
        if module.magnitude is not None:
            found[f"{PREFIX}{name}.lora_magnitude_vector"] = module.magnitude.contiguous()
    return found


def _targets(adapter: Adapter) -> tuple[list[str], list[int] | None]:
    """target_modules and layers_to_transform: last names and layers where these say exactly which modules there are, as they do where
    all layers that have any have the same; else whole names."""
    by_layer: dict[int, set[str]] = {}
    for name in adapter.modules:
        if not name.startswith("model.layers."):
            return sorted(adapter.modules), None
        by_layer.setdefault(int(name.split(".")[2]), set()).add(name.split(".", 3)[3])
    names = list(by_layer.values())
    last = {name.rpartition(".")[2] for name in names[0]}
    if any(other != names[0] for other in names) or len(last) != len(names[0]):
        return sorted(adapter.modules), None
    return sorted(last), sorted(by_layer)


def _alpha(module: LowRank) -> float:
    alpha = module.scale * module.rank
    return int(alpha) if alpha == int(alpha) else alpha


def _require_known(config: Mapping[str, Any], folder: Path) -> None:
    """Raises UsageError, which names the setting."""
    if config.get("peft_type") != "LORA":
        raise UsageError(f"{folder} is an adapter of type {shown(config.get('peft_type'))}; LoRA and DoRA are read. Merge it with PEFT: model.merge_and_unload().")
    if config.get("bias", "none") != "none":
        raise UsageError(f"{folder}: bias is {shown(config['bias'])}, and adapters with trained biases are not read. Merge it with PEFT: model.merge_and_unload().")
    if isinstance(config.get("init_lora_weights"), str) and _CHANGING.search(config["init_lora_weights"]):
        raise UsageError(
            f"{folder}: init_lora_weights is {shown(config['init_lora_weights'])}, which changes the base itself. Save it as a plain LoRA with PEFT: "
            "save_pretrained(path_initial_model_for_weight_conversion=...)."
        )
    unknown = [key for key, value in config.items() if key not in _HARMLESS and key != "bias" and value not in (None, False, {}, [])]
    if unknown:
        raise UsageError(f"{folder}: {unknown[0]} is {shown(config[unknown[0]])}, which is not known here and may change what the adapter computes. Merge it with PEFT: model.merge_and_unload().")
    for key in ("r", "lora_alpha"):
        if isinstance(config.get(key), bool) or not isinstance(config.get(key), int | float):
            raise ParseError(f"{folder / CONFIG}: {key} is {shown(config.get(key))}, and it must be a number.")


def _module(name: str, part: Mapping[str, Tensor], config: Mapping[str, Any], is_embedding: bool, path: Path) -> LowRank:
    if "a" not in part or "b" not in part:
        raise ParseError(f"{path}: {name} has only one of lora_A and lora_B. It is damaged.")
    a, b, magnitude = part["a"], part["b"], part.get("m")
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise UsageError(f"{path}: {name} has A {tuple(a.shape)} and B {tuple(b.shape)}; only adapters of matrices, A [r, in] and B [out, r], are read.")
    if bool(config.get("use_dora")) != (magnitude is not None):
        raise ParseError(f"{path}: use_dora is {shown(config.get('use_dora'))}, and {name} has {'a' if magnitude is not None else 'no'} magnitude. It is damaged.")
    if is_embedding and magnitude is not None:
        raise UsageError(f"{path}: {name} is an embedding with DoRA, which is not read. Merge it with PEFT: model.merge_and_unload().")
    alpha = _of_pattern(config.get("alpha_pattern") or {}, name, config["lora_alpha"])
    rank = a.shape[0]
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(a, b, scale, None if magnitude is None else magnitude.reshape(-1), is_embedding)


def _of_pattern(patterns: Mapping[str, Any], name: str, default: float) -> float:
    """As PEFT looks a module up: the first pattern that the end of its name matches. Source: peft, utils/other.py, get_pattern_key."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return float(value)
    return float(default)


def describes(folder: Path) -> bool:
    """Whether a folder holds an adapter of PEFT, to judge by its config."""
    try:
        return json.loads((folder / CONFIG).read_text()).get("peft_type") is not None
    except (OSError, ValueError, AttributeError):
        return False
