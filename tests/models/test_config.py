"""config.json, ours and transformers', and the architectures that are refused."""

import json

import pytest
from transformers import LlamaConfig as TheirConfig

from torchane.errors import ParseError, UsageError
from torchane.models.build import build_model
from torchane.models.config import GPT2Config, LlamaConfig, Qwen3Config, read_config

CONFIG = LlamaConfig(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, rope_theta=500.0, eos_token_id=3,
)  # fmt: skip


def test_it_survives_its_own_file():
    assert LlamaConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG


def test_transformers_reads_ours_and_we_read_what_transformers_writes():
    theirs = TheirConfig.from_dict(CONFIG.to_dict())
    assert theirs.rope_parameters["rope_theta"] == 500.0
    assert theirs.num_key_value_heads == 2 and theirs.head_dim == 16 and theirs.tie_word_embeddings
    assert LlamaConfig.from_dict(theirs.to_dict()) == CONFIG


def test_an_old_file_without_head_counts_means_multi_head_attention():
    values = CONFIG.to_dict()
    del values["num_key_value_heads"], values["head_dim"]
    config = LlamaConfig.from_dict(values)
    assert config.num_key_value_heads == 4 and config.head_dim == 16


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_act", "gelu"), ("model_type", "gpt2"), ("attention_bias", True), ("rope_scaling", {"type": "linear"}),
     ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1.0})],
)  # fmt: skip
def test_another_architecture_is_refused_by_the_name_of_its_key(key, value):
    with pytest.raises(ParseError, match=f"x/config.json: {key}"):
        LlamaConfig.from_dict({**CONFIG.to_dict(), key: value}, source="x/config.json")


def test_missing_sizes_are_named():
    with pytest.raises(ParseError, match="hidden_size, intermediate_size missing"):
        values = CONFIG.to_dict()
        del values["hidden_size"], values["intermediate_size"]
        LlamaConfig.from_dict(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_attention_heads": 3, "num_key_value_heads": 3}, "hidden_size 64 is not a multiple"),
     ({"num_key_value_heads": 3}, "num_key_value_heads is 3"), ({"vocab_size": 0}, "vocab_size is 0"),
     ({"hidden_size": "64"}, "hidden_size is '64'"), ({"head_dim": 5}, "head_dim is 5")],
)  # fmt: skip
def test_sizes_that_make_no_model_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        LlamaConfig(**{**{f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__}, "head_dim": 0, **changes})


BAD = [("num_hidden_layers", 10**9), ("hidden_size", 10**12), ("vocab_size", True), ("max_position_embeddings", 10**12), ("rope_theta", "x"),
       ("rope_theta", 10**400), ("rms_norm_eps", -1.0), ("rms_norm_eps", None), ("tie_word_embeddings", "yes"), ("eos_token_id", "</s>"),
       ("bos_token_id", -1), ("head_dim", [16]), ("initializer_range", {}), ("num_key_value_heads", 2.0)]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), BAD, ids=[f"{key} {str(value)[:12]}" for key, value in BAD])
def test_values_of_another_type_or_far_outside_are_named_before_anything_is_built(key, value):
    with pytest.raises(ParseError, match=f"{key} is ") as caught:
        read_config({**CONFIG.to_dict(), key: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", [None, [], {}, 3, "x" * 10**6])
def test_an_architecture_that_is_no_name_is_refused(kind):
    with pytest.raises(ParseError, match="model_type is ") as caught:
        read_config({**CONFIG.to_dict(), "model_type": kind})
    assert len(str(caught.value)) < 300


UNTIED = LlamaConfig(**{**CONFIG.__dict__, "tie_word_embeddings": False})
QWEN3 = Qwen3Config(**{**CONFIG.__dict__, "head_dim": 32})
GPT2 = GPT2Config(vocab_size=96, n_positions=32, n_embd=64, n_layer=2, n_head=4)


@pytest.mark.parametrize("config", [CONFIG, UNTIED, QWEN3, GPT2], ids=["tied", "untied", "qwen3", "gpt2"])
def test_parameters_are_counted_without_building_them(config):
    assert config.parameter_count == sum(param.numel() for param in build_model(config).parameters())


def test_a_model_larger_than_memory_is_refused_before_it_is_built():
    config = LlamaConfig(**{**CONFIG.__dict__, "hidden_size": 1 << 16, "intermediate_size": 1 << 18, "num_hidden_layers": 1000, "head_dim": 0})
    with pytest.raises(UsageError, match=r"The model has [0-9,]+ parameters and needs [0-9,.]+ GiB"):
        build_model(config)
