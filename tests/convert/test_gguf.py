"""GGUF: names, shapes and types as the gguf package and transformers read them; damage is an error, quickly and in little memory."""

import struct
import tracemalloc

import numpy as np
import pytest
import small_models

from torchane.convert import gguf, hf
from torchane.convert.gguf_file import GgufFile
from torchane.errors import ParseError, UsageError

TOKENS = list(range(5, 45))
#: Of a weight's largest number: fp16 has 11 binary digits, bf16 8; Q8_0 halves of a 127th, and a scale in fp16.
ROUNDED = {"f16": 2**-11, "bf16": 2**-8, "q8_0": 0.5 / 127 + 2**-11}
KINDS = {
    "llama": ("llama", {}), "tied": ("llama", {"tie_word_embeddings": True}), "head_dim": ("llama", {"head_dim": 24}),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}), "qwen2": ("qwen2", {}), "mistral": ("mistral", {"sliding_window": None}),
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: small_models.save(root / name, kind, **changes) for name, (kind, changes) in KINDS.items()}


@pytest.fixture(scope="module")
def llama(folders, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "llama-f16.gguf"
    gguf.write(hf.read(folders["llama"]), path, "f16")
    return path


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", KINDS)
def test_weights_come_back_within_the_type(folders, tmp_path, name, kind):
    model = hf.read(folders[name])
    gguf.write(model, tmp_path / "m.gguf", kind)
    back = gguf.read(tmp_path / "m.gguf")
    assert set(back.weights) == set(model.weights)
    for weight in back.weights:
        largest = model.weights[weight].abs().max()
        assert (back.weights[weight].float() - model.weights[weight]).abs().max() <= ROUNDED[kind] * largest, weight
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rms_norm_eps", "max_position_embeddings")
    assert [back.config[key] for key in sizes] == [model.config[key] for key in sizes]
    assert (back.head_dim, back.kv_heads, back.rope_theta, back.is_tied) == (model.head_dim, model.kv_heads, model.rope_theta, model.is_tied)


@pytest.mark.parametrize("name", ["llama", pytest.param("tied", marks=pytest.mark.long), pytest.param("qwen2", marks=pytest.mark.long)])
def test_transformers_computes_from_our_file_what_the_model_computes(folders, tmp_path, name):
    """Rows in a wrong order would be off by 1, not by fp16's rounding."""
    gguf.write(hf.read(folders[name]), tmp_path / "m.gguf", "f16")
    theirs = small_models.logits(tmp_path, TOKENS, gguf_file="m.gguf")
    assert small_models.close(theirs, small_models.logits(folders[name], TOKENS)) < 3e-3


def test_the_package_reads_keys_names_shapes_and_types(folders, tmp_path):
    package = pytest.importorskip("gguf")
    gguf.write(hf.read(folders["qwen3"]), tmp_path / "m.gguf", "q8_0")
    reader = package.GGUFReader(tmp_path / "m.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert keys["general.architecture"] == "qwen3" and keys["general.file_type"] == 7
    assert [keys[f"qwen3.{name}"] for name in ("block_count", "attention.head_count", "attention.head_count_kv", "attention.key_length")] == [3, 4, 2, 32]
    assert keys["tokenizer.ggml.model"] == "gpt2" and keys["tokenizer.ggml.pre"] == "gpt-2" and len(keys["tokenizer.ggml.tokens"]) == 320
    tensors = {tensor.name: (tensor.tensor_type.name, list(tensor.shape)) for tensor in reader.tensors}
    assert tensors["blk.0.attn_q.weight"] == ("Q8_0", [64, 128]) and tensors["blk.2.ffn_down.weight"] == ("Q8_0", [96, 64])
    assert tensors["blk.1.attn_q_norm.weight"] == ("F32", [32]) and tensors["output_norm.weight"] == ("F32", [64])
    assert "output.weight" not in tensors and len(tensors) == 2 + 3 * 11


def test_positions_of_llama_3_come_back(tmp_path):
    folder = small_models.save(tmp_path / "m", rope_theta=5e5, rope_scaling=dict(LLAMA3), max_position_embeddings=131072, head_dim=32)
    gguf.write(hf.read(folder), tmp_path / "m.gguf")
    model = gguf.read(tmp_path / "m.gguf")
    assert model.config["rope_scaling"].items() <= {**LLAMA3, "rope_theta": 5e5}.items() and model.rope_theta == 5e5


def test_rows_that_32_does_not_divide_stay_in_f16(tmp_path):
    gguf.write(hf.read(small_models.save(tmp_path / "m", intermediate_size=72)), tmp_path / "m.gguf", "q8_0")
    types = {name: stored.type for name, stored in GgufFile(tmp_path / "m.gguf").tensors.items()}
    assert types["blk.0.ffn_down.weight"] == 1 and types["blk.0.ffn_up.weight"] == 8


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("gpt2", {}, "is gpt2; torchane writes GGUF for llama, mistral, qwen2, qwen3"),
        ("mistral", {"sliding_window": 16}, "a sliding window of attention"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("llama", {"attention_bias": True}, "k_proj.bias, which it has no name for"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rotary positions of type 'dynamic'"),
    ],
)
def test_what_is_not_written_is_refused(tmp_path, kind, changes, said):
    small_models.save(tmp_path / "m", kind, tokenizer=False, **changes)
    with pytest.raises(UsageError, match=said):
        gguf.write(hf.read(tmp_path / "m"), tmp_path / "m.gguf")


def test_a_weight_beyond_fp16_is_refused_and_fits_bf16(folders, tmp_path):
    model = hf.read(folders["llama"])
    name = "model.layers.0.mlp.up_proj.weight"
    large = model.weights[name] * 1e7
    changed = small_models.with_weight(model, name, large)
    with pytest.raises(UsageError, match="up_proj.weight holds numbers up to .* beyond fp16's 65504. Write --gguf-type bf16"):
        gguf.write(changed, tmp_path / "m.gguf", "f16")
    gguf.write(changed, tmp_path / "b.gguf", "bf16")


@pytest.mark.parametrize("keep", [0, 3, 4, 10, 24, 200, 5000, -1])
def test_a_file_that_is_cut_short_is_an_error(llama, tmp_path, keep):
    (tmp_path / "m.gguf").write_bytes(llama.read_bytes()[:keep])
    with pytest.raises(ParseError, match="m.gguf"):
        gguf.read(tmp_path / "m.gguf")


def test_bytes_changed_at_random_are_read_or_refused_in_little_memory(llama, tmp_path):
    whole, random = llama.read_bytes(), np.random.default_rng(0)
    path = tmp_path / "m.gguf"
    tracemalloc.start()
    refused = 0
    for _ in range(100):
        data = bytearray(whole)
        for at in random.integers(0, 12_000, random.integers(1, 4)):  # the header
            data[at] = random.integers(256)
        path.write_bytes(data)
        try:
            gguf.read(path)
        except ParseError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 10 and peak < 64 << 20


@pytest.mark.parametrize("count", [2**63, 2**60, 2**31, 2**20])
@pytest.mark.parametrize("where", [8, 16])
def test_counts_that_the_file_cannot_hold_are_refused_at_once(llama, tmp_path, where, count):
    data = bytearray(llama.read_bytes())
    data[where : where + 8] = struct.pack("<Q", count)
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ParseError, match="entries|ends within"):
        gguf.read(tmp_path / "m.gguf")


def test_a_type_that_is_not_read_is_named(llama, tmp_path):
    package = pytest.importorskip("gguf")
    writer = package.GGUFWriter(tmp_path / "m.gguf", "llama")
    blocks = package.quants.quantize(np.ones((4, 256), np.float32), package.GGMLQuantizationType.Q4_0)
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=package.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    with pytest.raises(ParseError, match="'token_embd.weight' is Q4_0; F32, F16, BF16 and Q8_0 are read"):
        gguf.read(tmp_path / "m.gguf")


def test_tokenizer_files_come_back_with_the_same_tokens(folders, tmp_path):
    from tokenizers import Tokenizer

    gguf.write(hf.read(folders["llama"]), tmp_path / "m.gguf")
    files = gguf.read(tmp_path / "m.gguf").files
    one, two = Tokenizer.from_file(str(folders["llama"] / "tokenizer.json")), Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in ("The cat's hat, 1234!", "  Two\n\n spaces \u4f60\u597d", "<|endoftext|>x"):
        assert one.encode(text).ids == two.encode(text).ids and one.decode(one.encode(text).ids) == two.decode(two.encode(text).ids)
    assert files["chat_template.jinja"].decode().startswith("{% for m in messages %}")
