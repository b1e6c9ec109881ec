"""The presets are the models that they name."""

import pytest
import transformers

from torchane.errors import UsageError
from torchane.models.config import GPT2Config
from torchane.models.llama import LlamaForCausalLM
from torchane.models.presets import PRESETS, preset


@pytest.mark.parametrize(
    ("name", "params"),
    # Embedding V*d, per layer q and o 2*d*d, k and v 2*d*kv, mlp 3*d*h and two norms, one norm at the end.
    [("stories260k", 512 * 64 + 5 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 172 + 2 * 64) + 64),
     ("stories15m", 32000 * 288 + 6 * (4 * 288 * 288 + 3 * 288 * 768 + 2 * 288) + 288)],
)  # fmt: skip
def test_presets_have_the_parameters_of_llama2c(name, params):
    assert sum(weight.numel() for weight in LlamaForCausalLM(preset(name).config).parameters()) == params


def test_stories110m_has_the_sizes_of_llama2c():
    config = preset("stories110m").config
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert sizes == (768, 12, 12, 2048) and config.vocab_size == 32000 and config.max_position_embeddings == 1024


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_within_its_positions(name):
    assert preset(name).training.seq_len <= preset(name).config.max_position_embeddings


def test_gpt2_is_the_published_one():
    assert preset("gpt2").config == GPT2Config.from_dict(transformers.GPT2Config().to_dict() | {"bos_token_id": None, "eos_token_id": None})


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(UsageError, match="no preset 'huge'.*tiny, stories260k, stories15m, stories42m, stories110m, gpt2, qwen3-0.6b"):
        preset("huge")


def test_the_nearest_preset_is_named():
    with pytest.raises(UsageError, match="no preset 'stories110M' .did you mean stories110m"):
        preset("stories110M")
