"""config.json, ours and transformers', and the architectures that are refused."""

import json

import pytest
from transformers import LlamaConfig as TheirConfig

from torchane.errors import ParseError, UsageError
from torchane.models.config import LlamaConfig

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
