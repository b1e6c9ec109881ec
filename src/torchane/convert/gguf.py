"""Models as GGUF: llama, mistral, qwen2 and qwen3 in F32, F16, BF16 and Q8_0, with tokenizer and chat template.

    write   config.json ─► keys; weights one at a time, matrices in the type asked for, vectors in F32
    read    keys ─► config.json; every shape is compared with what that config needs; Q8_0 becomes float32

Q8_0 keeps rows that 32 does not divide in F16, as llama.cpp's converter does. The gguf package writes the container. Sources: ggml,
docs/gguf.md; llama.cpp, conversion/base.py, conversion/llama.py.
"""

import math
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchane.convert import gguf_tokenizer, rotary
from torchane.convert.gguf_file import BF16, F16, F32, Q8_0, TYPES, GgufFile
from torchane.convert.gguf_names import ARCHITECTURES, ROPE_FREQS, Architecture, architecture_of, from_gguf, heads_turned, to_gguf, turned
from torchane.convert.gguf_tokenizer import Vocabulary
from torchane.convert.model import EMBEDDING, HEAD, Model, Shape, Weights, require_names
from torchane.errors import ParseError, UsageError, shown

#: What --gguf-type says -> ggml's type, and the number in general.file_type. Source: llama.cpp, include/llama.h, llama_ftype.
FILE_TYPES: Mapping[str, tuple[int, int]] = {"f16": (F16, 1), "bf16": (BF16, 32), "q8_0": (Q8_0, 7)}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def package() -> Any:
    """The gguf package. Raises UsageError where it is not installed."""
    try:
        return import_module("gguf")
    except ImportError as error:
        raise UsageError(f"Writing GGUF needs the gguf package: pip install 'torchane[finetune]' ({error}).") from error


def write(model: Model, path: Path, kind: str = "f16") -> None:
    """kind: one of FILE_TYPES. Raises UsageError for a model that llama.cpp would run otherwise, or not at all."""
    architecture = architecture_of(model)
    _require_plain(model)
    is_tied = model.is_tied or bool(model.config.get("tie_word_embeddings"))
    names = architecture.shapes(model, is_tied=is_tied)
    require_names(model, names if not is_tied or model.is_tied else {**names, HEAD: ()}, "GGUF")
    vocabulary = gguf_tokenizer.from_files(model.files, model.config, model.source)
    writer = package().GGUFWriter(None, architecture.name)
    _write_keys(writer, model, architecture, kind)
    if vocabulary is not None:
        _write_vocabulary(writer, vocabulary)
    freqs = _rope_freqs(model)
    if freqs is not None:
        writer.add_tensor_info(ROPE_FREQS, freqs.shape, freqs.dtype, freqs.nbytes)
    types = {name: _type(shape, FILE_TYPES[kind][0]) for name, shape in names.items()}
    for name, shape in names.items():
        _, numbers, size = TYPES[types[name]]
        bytes_ = math.prod(shape) // numbers * size
        writer.add_tensor_info(to_gguf(name, architecture), shape, np.dtype(np.float32), bytes_, package().GGMLQuantizationType(types[name]))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        if freqs is not None:
            writer.write_tensor_data(freqs)
        for name in names:
            values = turned(model.weights[name], heads_turned(name, model, architecture))
            writer.write_tensor_data(_encoded(values, types[name], model.source, name))
    finally:
        writer.close()


def read(path: Path) -> Model:
    """Raises ParseError for a damaged file, another architecture, a type that is not read, weights that the keys do not describe."""
    file = GgufFile(path)
    name = file.keys.get("general.architecture")
    architecture = next((known for known in ARCHITECTURES if known.name == name), None)
    if file.keys.get("general.type", "model") != "model":
        raise ParseError(f"{path} holds no model but {shown(file.keys['general.type'])}; import it with its base: torchane import {path} --model BASE.")
    if architecture is None:
        raise ParseError(f"{path} is {shown(name)}; the architectures that are read are {', '.join({known.name: 0 for known in ARCHITECTURES})}.")
    vocabulary = _read_vocabulary(file)
    config = _read_config(file, architecture, vocabulary)
    places = {from_gguf(theirs, architecture): theirs for theirs in file.tensors if theirs != ROPE_FREQS}
    if None in places:
        raise ParseError(f"{path} has the tensor {shown(places[None])}, which a model of architecture {name} has not.")

    def load(own: str) -> Tensor:
        return turned(file.read(places[own]), heads_turned(own, model, architecture), rotary.to_halves)

    shapes = {own: file.tensors[theirs].shape for own, theirs in places.items()}
    files = {} if vocabulary is None else gguf_tokenizer.to_files(vocabulary, str(path))
    quantised = "Q8_0" if any(stored.type == Q8_0 for stored in file.tensors.values()) else None
    model = Model(config, Weights(shapes, load, str(path)), files, str(path), quantised)
    _require_shapes(model, architecture.shapes(model, is_tied=HEAD not in places), path)
    return model


def _require_plain(model: Model) -> None:
    """Raises UsageError for what the architecture in llama.cpp does not do, and what is not written here."""
    config = model.config
    sliding = config.get("sliding_window") if model.kind == "mistral" else config.get("use_sliding_window")
    wanted = (
        (config.get("hidden_act", "silu") in ("silu", "swish"), f"hidden_act {shown(config.get('hidden_act'))}"),
        (not sliding and "sliding_attention" not in (config.get("layer_types") or ()), "a sliding window of attention"),
        (model.rope_type in ("default", "linear") or (model.rope_type == "llama3" and model.kind == "llama"), f"rotary positions of type {shown(model.rope_type)}"),
        (config.get("partial_rotary_factor", 1.0) in (1, 1.0, None), "positions that turn only a part of each head"),
    )
    for is_right, what in wanted:
        if not is_right:
            raise UsageError(f"{model.source} has {what}, which torchane does not write as GGUF. Export it with --to hf, and convert that folder with llama.cpp's convert_hf_to_gguf.py.")


def _write_keys(writer: Any, model: Model, architecture: Architecture, kind: str) -> None:
    gguf = package()
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(Path(model.source).name or "model")
    writer.add_file_type(FILE_TYPES[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(model.size("num_hidden_layers"))
    writer.add_context_length(model.size("max_position_embeddings"))
    writer.add_embedding_length(model.size("hidden_size"))
    writer.add_feed_forward_length(model.size("intermediate_size"))
    writer.add_head_count(model.size("num_attention_heads"))
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(float(model.config.get("rms_norm_eps", 1e-6)))
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_vocab_size(model.size("vocab_size"))
    if architecture.turns:
        writer.add_rope_dimension_count(model.head_dim)
    if model.rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(model.rope["factor"]))


def _write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space)
    else:
        writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges])
    writer.add_add_bos_token(vocabulary.add_bos)
    add = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "unknown": writer.add_unk_token_id, "padding": writer.add_pad_token_id}
    for name, number in vocabulary.special.items():
        add[name](number)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _type(shape: Shape, wanted: int) -> int:
    if len(shape) == 1:
        return F32
    return F16 if wanted == Q8_0 and shape[-1] % 32 else wanted


def _encoded(values: Tensor, kind: int, source: str, name: str) -> np.ndarray:
    """The bytes of a tensor in ggml's type. Raises UsageError where fp16 cannot hold a number."""
    if kind == Q8_0:
        return package().quants.quantize(values.float().contiguous().numpy(), package().GGMLQuantizationType.Q8_0)
    dtype = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}[kind]
    encoded = values.to(dtype).contiguous()
    if kind == F16 and not encoded.isfinite().all():
        raise UsageError(f"{source}: {name} holds numbers up to {float(values.abs().max()):g}, beyond fp16's 65504. Write --gguf-type bf16.")
    return encoded.reshape(-1).view(torch.uint8).numpy()


def _llama3_factors(rope: Mapping[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """What llama.cpp divides the frequency of each pair by, float32 (head_dim / 2,). Source: transformers, modeling_rope_utils.py, llama3."""
    wavelengths = 2 * math.pi * theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    factor, low, high, positions = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    smooth = (positions / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = torch.where(wavelengths < positions / high, torch.ones_like(between), torch.where(wavelengths > positions / low, torch.full_like(between, factor), between))
    return factors.numpy()


def _rope_freqs(model: Model) -> np.ndarray | None:
    if model.rope_type != "llama3":
        return None
    rope = model.rope
    if any(not isinstance(rope.get(key), int | float) for key in ("factor", *_LLAMA3)):
        raise UsageError(f"{model.source}: its config.json lacks numbers of the llama3 positions: {', '.join(('factor', *_LLAMA3))}.")
    return _llama3_factors(rope, model.rope_theta, model.head_dim)


def _read_config(file: GgufFile, architecture: Architecture, vocabulary: Vocabulary | None) -> dict[str, Any]:
    def number(key: str, default: float | None = None, *, whole: bool = True) -> Any:
        value = file.keys.get(f"{architecture.name}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value > 0 or value > 1 << 40:
            raise ParseError(f"{file.path}: {architecture.name}.{key} is {shown(value)}, and it must be a number above 0.")
        return value

    embedding = file.tensors.get(to_gguf(EMBEDDING, architecture) or "")
    heads, width = number("attention.head_count"), number("embedding_length")
    config: dict[str, Any] = {
        "architectures": [architecture.class_name], "model_type": architecture.kind,
        "vocab_size": embedding.shape[0] if embedding is not None else number("vocab_size"),
        "hidden_size": width, "intermediate_size": number("feed_forward_length"), "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads, "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": number("attention.key_length", width // heads or 1), "max_position_embeddings": number("context_length"),
        "rms_norm_eps": _short(number("attention.layer_norm_rms_epsilon", whole=False)),
        "rope_theta": _short(number("rope.freq_base", 10000.0, whole=False)), "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors, "dtype": "float32",
    }  # fmt: skip
    if config["num_hidden_layers"] > len(file.tensors) or config["num_attention_heads"] % config["num_key_value_heads"]:
        raise ParseError(f"{file.path}: {config['num_hidden_layers']:,} layers of {heads:,} heads do not fit its {len(file.tensors)} tensors. It is damaged.")
    if number("rope.dimension_count", config["head_dim"]) != config["head_dim"] or number("attention.value_length", config["head_dim"]) != config["head_dim"]:
        raise ParseError(f"{file.path}: its positions turn a part of each head, or its values have other sizes than its keys; such models are not read.")
    if vocabulary is not None:
        config |= {key: vocabulary.special[name] for name, key in (("bos", "bos_token_id"), ("eos", "eos_token_id")) if name in vocabulary.special}
    return config | _read_rope(file, architecture, config)


def _short(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, where the file says 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _read_rope(file: GgufFile, architecture: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    kind = file.keys.get(f"{architecture.name}.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ParseError(f"{file.path}: rotary positions scaled as {shown(kind)} are not read. Take the model's Hugging Face folder.")
    if kind == "linear":
        return {"rope_scaling": {"rope_type": "linear", "factor": float(file.keys.get(f"{architecture.name}.rope.scaling.factor", 1.0))}}
    if ROPE_FREQS not in file.tensors:
        return {}
    factors = file.read(ROPE_FREQS).float().numpy().reshape(-1)
    rope = {"rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3}
    wanted = _llama3_factors(rope, config["rope_theta"], config["head_dim"])
    if wanted.shape != factors.shape or not np.allclose(wanted, factors, rtol=1e-4, atol=0):
        raise ParseError(f"{file.path}: its {ROPE_FREQS} are not those of Llama 3, and how they were made is not written in the file. Take the model's Hugging Face folder.")
    return {"rope_scaling": rope}


def _read_vocabulary(file: GgufFile) -> Vocabulary | None:
    def of(name: str, kind: type, default: Any = None) -> Any:
        value = file.keys.get(f"tokenizer.{name}", default)
        if value is not None and not isinstance(value, kind):
            raise ParseError(f"{file.path}: tokenizer.{name} is {shown(value)}. It is damaged.")
        return value

    model = of("ggml.model", str)
    if model is None:
        return None
    tokens, merges, scores = of("ggml.tokens", list, []), of("ggml.merges", list, []), of("ggml.scores", list)
    kinds = gguf_tokenizer.require_sound(tokens, of("ggml.token_type", list), str(file.path))
    pairs = [tuple(merge.split(" ", 1)) for merge in merges if isinstance(merge, str)]
    if model not in ("gpt2", "llama") or not all(isinstance(token, str) for token in tokens) or any(len(pair) != 2 for pair in pairs):
        raise ParseError(f"{file.path}: its tokenizer is {shown(model)}; BPE (gpt2) and SentencePiece (llama) are read.")
    if model == "llama" and (scores is None or len(scores) != len(tokens)):
        raise ParseError(f"{file.path}: its SentencePiece vocabulary has {len(tokens):,} tokens and {len(scores or []):,} scores.")
    special = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unknown", "unknown"), ("padding", "padding")):
        number = of(f"ggml.{key}_token_id", int)
        if number is not None and not 0 <= number < len(tokens):
            raise ParseError(f"{file.path}: tokenizer.ggml.{key}_token_id is {number}, of {len(tokens):,} tokens. It is damaged.")
        special |= {} if number is None else {name: number}
    is_llama = model == "llama"
    return Vocabulary(
        model, of("ggml.pre", str, "default"), tokens, kinds, pairs, scores if is_llama else None,  # type: ignore[arg-type]
        add_space=of("ggml.add_space_prefix", bool, True), add_bos=of("ggml.add_bos_token", bool, is_llama), special=special,
        chat_template=of("chat_template", str),
    )  # fmt: skip


def _require_shapes(model: Model, needed: Mapping[str, Shape], path: Path) -> None:
    wrong = [f"{name} is missing" for name in needed if name not in model.weights]
    wrong += [f"{name} is {model.weights.shapes[name]} and the keys describe {shape}" for name, shape in needed.items() if name in model.weights and model.weights.shapes[name] != shape]
    wrong += [f"{name} is one too many" for name in model.weights if name not in needed]
    if wrong:
        raise ParseError(f"{path}: {wrong[0]}{f', and {len(wrong) - 1} more' if len(wrong) > 1 else ''}. It is damaged.")
