"""Model files of karpathy/llama2.c, versions 0, 1 and 2, to the byte.

    v0   7 int32; fp32: embedding, norms and matrices in the order of run.c, two tables of angles, [head]     run
    v1   256 bytes with a magic number; fp32: norms, embedding, matrices, [head]                              (export.py)
    v2   the same header; norms as in v1; each matrix as int8 in groups with an fp32 scale each               runq

Matrices are [out, in]; q and k have their rows in Meta's order (rotary.py). Nothing says which tokenizer a file belongs to: it is a
tokenizer.bin beside it. Sources: karpathy/llama2.c, export.py, run.c, runq.c.
"""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchane.convert import llama2c_tokenizer, rotary
from torchane.convert.files import open_input
from torchane.convert.model import (
    ATTENTION_NORM, DOWN, EMBEDDING, GATE, HEAD, K, MLP_NORM, NORM, O, Q, UP, V, Model, Shape, Weights, layer_name, llama_shapes, require_names,
)  # fmt: skip
from torchane.errors import ParseError, UsageError

MAGIC = 0x616B3432
HEADER_BYTES = 256
GROUP = 64
NORM_EPS, THETA = 1e-5, 10000.0  # run.c has them as constants
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size", "max_position_embeddings")
_MOST = 1 << 30


@dataclass(frozen=True)
class _Layout:
    """version; whether head and embedding are one; the group size of v2; where the numbers begin."""

    version: int
    is_tied: bool
    group: int
    begin: int


def read(path: Path, tokenizer: Path | None = None) -> Model:
    """A `.bin` of llama2.c. tokenizer: its tokenizer.bin; not said, the file of that name beside it, if it has as many tokens.
    Raises ParseError for anything else, with the bytes that were expected.
    """
    with open_input(path) as file:
        head = file.read(HEADER_BYTES)
        size = file.seek(0, 2)
    config, layout = _parse_header(path, head)
    places: dict[str, tuple[int, Shape]] = {}
    offset = layout.begin
    for name, shape in _order(config, layout):
        places[name] = (offset, shape)
        offset += _bytes(shape, layout)
    if offset != size:
        raise ParseError(f"{path} has {size:,} bytes, and a llama2.c model of version {layout.version} with its sizes has {offset:,}. It is cut short, or no such file.")
    shapes = llama_shapes(config, is_tied=layout.is_tied)

    def load(name: str) -> Tensor:
        begin, shape = places[name]
        return _turned(name, _read(path, begin, shape, layout), config, rotary.to_halves)

    files = llama2c_tokenizer.files_for(path, tokenizer, config["vocab_size"])
    return Model(config, Weights(shapes, load, str(path)), files, str(path), "int8" if layout.version == 2 else None)


def write(model: Model, path: Path, version: int = 0) -> None:
    """Raises UsageError for a model that is no plain Llama with rotary positions of 10000 and an eps of 1e-5, which run.c has built in."""
    config = _require_llama(model)
    layout = _Layout(version, model.is_tied, _group(config["hidden_size"], config["intermediate_size"]), 28 if version == 0 else HEADER_BYTES)
    with open(path, "wb") as file:
        file.write(_header(config, layout))
        for name, shape in _order(config, layout):
            if name in _ANGLES:
                file.write(_angles(config)[_ANGLES.index(name)].numpy().tobytes())
                continue
            values = _turned(name, model.weights[name].float(), config, rotary.to_neighbours).contiguous().numpy()
            file.writelines(_quantise(values, layout.group) if _is_quantised(shape, layout) else [values.tobytes()])


def _parse_header(path: Path, head: bytes) -> tuple[dict[str, Any], _Layout]:
    if len(head) < 28:
        raise ParseError(f"{path} has {len(head)} bytes, and a llama2.c model begins with 28 or more.")
    magic, version = struct.unpack_from("<Ii", head)
    if magic == MAGIC:
        if version not in (1, 2) or len(head) < HEADER_BYTES:
            raise ParseError(f"{path} is a llama2.c file of version {version}; versions 0, 1 and 2 are read.")
        numbers = struct.unpack_from("<7i", head, 8)
        layout = _Layout(version, bool(head[36]), struct.unpack_from("<i", head, 37)[0], HEADER_BYTES)
    else:
        numbers = struct.unpack_from("<7i", head)
        layout = _Layout(0, numbers[5] > 0, GROUP, 28)
    sizes = dict(zip(_SIZES, (*numbers[:5], abs(numbers[5]), numbers[6]), strict=True))
    wrong = [f"{name} {value:,}" for name, value in sizes.items() if not 1 <= value <= _MOST]
    width, heads, keys = (sizes[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if wrong or width % heads or heads % keys or width // heads % 2:
        raise ParseError(f"{path} is no llama2.c model: it would have {', '.join(wrong) or f'{width} channels in {heads} heads with {keys} for keys'}.")
    if layout.version == 2 and not (1 <= layout.group <= width and width % layout.group == 0 and sizes["intermediate_size"] % layout.group == 0):
        raise ParseError(f"{path} has groups of {layout.group}, which do not divide its rows of {width} and {sizes['intermediate_size']}.")
    return _config(sizes, layout.is_tied), layout


def _config(sizes: dict[str, int], is_tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **sizes, "head_dim": sizes["hidden_size"] // sizes["num_attention_heads"],
        "rms_norm_eps": NORM_EPS, "rope_theta": THETA, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": is_tied, "bos_token_id": 1, "eos_token_id": 2, "dtype": "float32",
    }  # fmt: skip


_ANGLES = ("cos", "sin")
_V0 = (ATTENTION_NORM, Q, K, V, O, MLP_NORM, GATE, DOWN, UP)
_LATER = (Q, K, V, O, GATE, DOWN, UP)


def _order(config: dict[str, Any], layout: _Layout) -> Iterator[tuple[str, Shape]]:
    """Every tensor of a file in its order: one kind of all layers, then the next."""
    shapes = llama_shapes(config, is_tied=layout.is_tied)

    def all_layers(*kinds: str) -> Iterator[str]:
        return (layer_name(layer, kind) for kind in kinds for layer in range(config["num_hidden_layers"]))

    tables = (config["max_position_embeddings"], config["head_dim"] // 2)
    if layout.version == 0:
        names = [EMBEDDING, *all_layers(*_V0), NORM, *_ANGLES]
    else:
        names = [*all_layers(ATTENTION_NORM, MLP_NORM), NORM, EMBEDDING, *all_layers(*_LATER)]
    for name in [*names, *([] if layout.is_tied else [HEAD])]:
        yield name, shapes.get(name, tables)


def _is_quantised(shape: Shape, layout: _Layout) -> bool:
    return layout.version == 2 and len(shape) == 2


def _bytes(shape: Shape, layout: _Layout) -> int:
    count = math.prod(shape)
    return count + 4 * (count // layout.group) if _is_quantised(shape, layout) else 4 * count


def _read(path: Path, begin: int, shape: Shape, layout: _Layout) -> Tensor:
    count = math.prod(shape)
    with open_input(path) as file:
        file.seek(begin)
        data = file.read(_bytes(shape, layout))
    if len(data) != _bytes(shape, layout):
        raise ParseError(f"{path} became shorter while it was read.")
    if not _is_quantised(shape, layout):
        return torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32)).reshape(shape)
    whole = np.frombuffer(data, np.int8, count).reshape(-1, layout.group)
    scales = np.frombuffer(data, "<f4", offset=count)
    return torch.from_numpy(whole.astype(np.float32) * scales[:, None]).reshape(shape)


def _turned(name: str, values: Tensor, config: dict[str, Any], turn: Callable[[Tensor, int], Tensor]) -> Tensor:
    for ending, heads in ((Q, "num_attention_heads"), (K, "num_key_value_heads")):
        if name.endswith(ending):
            return turn(values, config[heads])
    return values


def _header(config: dict[str, Any], layout: _Layout) -> bytes:
    numbers = [config[name] for name in _SIZES]
    if layout.version == 0:
        numbers[5] *= 1 if layout.is_tied else -1
        return struct.pack("<7i", *numbers)
    head = struct.pack("<Ii7iB", MAGIC, layout.version, *numbers, layout.is_tied)
    if layout.version == 2:
        head += struct.pack("<i", layout.group)
    return head.ljust(HEADER_BYTES, b"\0")


def _angles(config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, float32 (positions, head_dim / 2): in the file, though readers compute their own."""
    dim = config["head_dim"]
    turns = torch.outer(torch.arange(config["max_position_embeddings"]), 1.0 / THETA ** (torch.arange(0, dim, 2).float() / dim)).float()
    return turns.cos(), turns.sin()


def _group(*rows: int) -> int:
    """The largest group that divides rows of these lengths: runq takes a whole number of groups in a row."""
    group = GROUP
    while any(length % group for length in rows):
        group //= 2
    return group


def _quantise(values: np.ndarray, group: int) -> list[bytes]:
    """float32 -> int8 in groups, and a scale each. What was int8 before becomes the same bytes: of the scales within a rounding
    of the largest by 127 the one is taken that gives back every number of the group, if any does."""
    groups = values.reshape(-1, group)
    scales = np.abs(groups).max(1) / np.float32(127)
    best = _whole(groups, scales)
    for other in (np.nextafter(scales, np.float32(0)), np.nextafter(scales, np.float32(np.inf))):
        whole = _whole(groups, other)
        gives_back = (whole * other[:, None] == groups).all(1) & ~(best * scales[:, None] == groups).all(1)
        scales, best = np.where(gives_back, other, scales), np.where(gives_back[:, None], whole, best)
    return [best.astype(np.int8).tobytes(), scales.astype("<f4").tobytes()]


def _whole(groups: np.ndarray, scales: np.ndarray) -> np.ndarray:
    divisors = np.where(scales == 0, np.float32(1), scales)
    return np.clip(np.round(groups / divisors[:, None]), -127, 127)


def _require_llama(model: Model) -> dict[str, Any]:
    if model.kind != "llama":
        raise UsageError(f"{model.source} is {model.kind}, and llama2.c knows only llama. Export it with --to gguf or --to hf.")
    config = {**model.config, "num_key_value_heads": model.kv_heads, "head_dim": model.head_dim}
    for name in _SIZES:
        model.size(name)
    eps = config.get("rms_norm_eps", 1e-6)
    wanted = (
        (model.rope_theta == THETA and model.rope_type == "default", f"rotary positions of {model.rope_type} {model.rope_theta:g}", f"plain ones of {THETA:g}"),
        (eps == NORM_EPS, f"rms_norm_eps {eps:g}", f"{NORM_EPS:g}"),
        (config["head_dim"] * config["num_attention_heads"] == config["hidden_size"], f"head_dim {config['head_dim']}", "hidden_size / num_attention_heads"),
        (config.get("hidden_act", "silu") in ("silu", "swish"), f"hidden_act {config.get('hidden_act')}", "silu"),
    )  # fmt: skip
    for is_right, has, built_in in wanted:
        if not is_right:
            raise UsageError(f"{model.source} has {has}, and llama2.c has {built_in} built in. Export it with --to gguf or --to hf.")
    require_names(model, llama_shapes(config, is_tied=model.is_tied), "a llama2.c file")
    return config
