"""Adapters of mlx-lm: LoRA and DoRA, with one rank and one scale for all modules.

    adapter_config.json  adapters.safetensors      MODULE.lora_a [in, r], .lora_b [r, out], .m [out]

`keys` says which modules are wrapped: relative to a block, in the last num_layers blocks, or from the top. mlx-lm refuses a tensor
that no wrapped module has; a wrapped module without tensors stays as the base is. Source: ml-explore/mlx-lm, tuner/utils.py, tuner/lora.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from torchane.convert.adapter import EMBED_TOKENS, LM_HEAD, Adapter, LowRank, require_no_whole
from torchane.convert.files import read_json
from torchane.convert.hf import read_tensor, tensor_shapes
from torchane.convert.model import Model
from torchane.errors import ParseError, UsageError, shown
from torchane.models.files import write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
_PARTS = {"lora_a": "a", "lora_b": "b", "m": "m"}
_BLOCK = "model.layers."


def read(folder: Path, base: Model | None = None) -> Adapter:
    """Raises ParseError for a damaged folder, UsageError for what is no LoRA or DoRA of matrices, and for a LoRA on an embedding
    that is, or may be, the head, too: mlx-lm then changes both, and others do not."""
    config = read_json(folder / CONFIG)
    kind, parameters = config.get("fine_tune_type", "lora"), config.get("lora_parameters")
    path = folder / WEIGHTS
    if kind == "full":
        whole = {name: read_tensor(path, name) for name in tensor_shapes(path)}
        return Adapter({}, config.get("model"), 0.0, whole, str(folder))
    if kind not in ("lora", "dora") or not isinstance(parameters, Mapping):
        raise ParseError(f"{folder / CONFIG}: fine_tune_type is {shown(kind)} with lora_parameters {shown(parameters)}; mlx-lm writes lora, dora or full, with rank and scale.")
    scale = parameters.get("scale")
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise ParseError(f"{folder / CONFIG}: lora_parameters has scale {shown(scale)}, and it must be a number.")
    parts: dict[str, dict[str, Tensor]] = {}
    for name in tensor_shapes(path):
        module, _, part = name.rpartition(".")
        if part not in _PARTS or not module:
            raise ParseError(f"{path}: {shown(name)} is no part of a LoRA; mlx-lm writes lora_a, lora_b and m.")
        parts.setdefault(module, {})[_PARTS[part]] = read_tensor(path, name)
    if not parts:
        raise ParseError(f"{path} holds no tensors.")
    modules = {name: _module(name, part, float(scale), kind, path) for name, part in parts.items()}
    if EMBED_TOKENS in modules and (base is None or base.is_tied or base.config.get("tie_word_embeddings")):
        raise UsageError(f"{folder} has a LoRA on embed_tokens, which mlx-lm adds to a tied head, too. Say with --model a base whose head is its own, or fuse it with mlx_lm.fuse.")
    return Adapter(modules, config.get("model"), float(parameters.get("dropout") or 0), {}, str(folder))


def write(adapter: Adapter, folder: Path, base: Model) -> None:
    """Into an existing, empty folder, for that base. Raises UsageError for what mlx-lm cannot hold."""
    require_no_whole(adapter, "mlx-lm")
    if LM_HEAD in adapter.modules and (base.is_tied or base.config.get("tie_word_embeddings")):
        raise UsageError(f"{adapter.source} has a LoRA on lm_head, which in {base.source} is the embedding itself; mlx-lm has no lm_head there. Merge it: torchane fuse.")
    if EMBED_TOKENS in adapter.modules and (base.is_tied or base.config.get("tie_word_embeddings")):
        raise UsageError(f"{adapter.source} has a LoRA on embed_tokens, which in {base.source} is the head, too; mlx-lm would change both. Merge it: torchane fuse.")
    outside = [name for name in adapter.modules if not name.startswith(_BLOCK) and name not in (LM_HEAD, EMBED_TOKENS)]
    if outside:
        raise UsageError(f"{adapter.source}: {outside[0]} is not among the layers of a model that mlx-lm names as Hugging Face does. Merge it: torchane fuse.")
    uniform = adapter.uniform()
    layers, keys = _keys(uniform, base.size("num_hidden_layers"))
    parameters = {"rank": uniform.rank, "scale": uniform.scale, "dropout": adapter.dropout, "keys": keys}
    write_json(folder / CONFIG, {
        "fine_tune_type": "dora" if adapter.is_dora else "lora", "lora_parameters": parameters, "model": adapter.base,
        "num_layers": layers,
    })  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for name, module in uniform.modules.items():
        tensors[f"{name}.lora_a"] = module.a.T.contiguous()
        tensors[f"{name}.lora_b"] = module.b.T.contiguous()
        if module.magnitude is not None:
            tensors[f"{name}.m"] = module.magnitude.float().contiguous()
    save_file(dict(sorted(tensors.items())), folder / WEIGHTS, {"format": "mlx"})


def _keys(adapter: Adapter, layers: int) -> tuple[int, list[str]]:
    """num_layers and keys that wrap exactly the modules of the adapter: relative names where the last layers are all alike, as
    mlx-lm itself writes them; else names from the top."""
    inner: dict[int, set[str]] = {}
    top = [name for name in adapter.modules if not name.startswith(_BLOCK)]
    for name in adapter.modules:
        if name.startswith(_BLOCK):
            number, _, rest = name.removeprefix(_BLOCK).partition(".")
            inner.setdefault(int(number), set()).add(rest)
    first = min(inner, default=layers)
    alike = list(inner.values())
    if inner and sorted(inner) == list(range(first, layers)) and all(names == alike[0] for names in alike):
        return layers - first, sorted(alike[0]) + sorted(top)
    return layers, sorted(adapter.modules)


def _module(name: str, part: Mapping[str, Tensor], scale: float, kind: str, path: Path) -> LowRank:
    if "a" not in part or "b" not in part or ("m" in part) != (kind == "dora"):
        raise ParseError(f"{path}: {name} has {', '.join(sorted(part))}, and a {kind} has lora_a, lora_b{' and m' if kind == 'dora' else ''}. It is damaged.")
    a, b = part["a"], part["b"]
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0] or not a.shape[1]:
        raise UsageError(f"{path}: {name} has lora_a {tuple(a.shape)} and lora_b {tuple(b.shape)}; only adapters of matrices, [in, r] and [r, out], are read.")
    if "m" in part and name == EMBED_TOKENS:
        raise UsageError(f"{path}: {name} is an embedding with DoRA, whose magnitudes mlx-lm and PEFT take along other axes. Fuse it with mlx_lm.fuse.")
    return LowRank(a.T.contiguous(), b.T.contiguous(), scale, part.get("m"), name == EMBED_TOKENS)


def describes(folder: Path) -> bool:
    """Whether a folder holds an adapter of mlx-lm, to judge by its config."""
    try:
        config: Any = json.loads((folder / CONFIG).read_text())
        return isinstance(config, dict) and "peft_type" not in config and ("num_layers" in config or "fine_tune_type" in config)
    except (OSError, ValueError):
        return False
