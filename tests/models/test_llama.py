"""The Llama against transformers' own, and what its initial weights and errors promise."""

import math

import pytest
import torch
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM as TheirModel

from torchane.errors import UsageError
from torchane.models.common import FIRST_POSITIONS, KeyValueCache
from torchane.models.config import LlamaConfig
from torchane.models.llama import LlamaForCausalLM


def small(**changes) -> LlamaConfig:
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}  # fmt: skip
    return LlamaConfig(**{**sizes, **changes})


def theirs(model: LlamaForCausalLM) -> TheirModel:
    other = TheirModel(TheirConfig.from_dict(model.config.to_dict()))
    missing = other.load_state_dict(model.state_dict(), strict=False)
    assert not missing.unexpected_keys and not missing.missing_keys
    return other


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"tie_word_embeddings": False},
     {"head_dim": 32}, {"rope_theta": 500.0, "rms_norm_eps": 1e-6}],
    ids=["grouped", "multi-head", "multi-query", "untied", "wide heads", "other constants"],
)  # fmt: skip
def test_logits_and_gradients_are_those_of_transformers(changes):
    ours = LlamaForCausalLM(small(initializer_range=0.2, **changes), seed=1)
    other = theirs(ours)
    tokens = torch.randint(0, 96, (2, 17), generator=torch.Generator().manual_seed(0))
    want = other(tokens).logits
    got = ours(tokens)
    assert got.dtype == torch.float32 and got.shape == (2, 17, 96)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)  # float32, sums in another order
    got.square().mean().backward()
    want.square().mean().backward()
    gradients = {name: weight.grad for name, weight in other.named_parameters()}
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-6)


def test_a_cache_gives_the_logits_of_the_whole_sequence():
    model = LlamaForCausalLM(small(initializer_range=0.2), seed=2)
    tokens = torch.randint(0, 96, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(tokens)
        cache = KeyValueCache(model.config)
        parts = [model(tokens[:, :5], cache)] + [model(tokens[:, i : i + 1], cache) for i in range(5, 12)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_a_cache_grows_beyond_what_it_had_room_for_at_first():
    model = LlamaForCausalLM(small(initializer_range=0.2, max_position_embeddings=40960), seed=2)
    tokens = torch.randint(0, 96, (1, 3 * FIRST_POSITIONS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(tokens)
        cache = KeyValueCache(model.config)
        parts = [model(tokens[:, i : i + 1], cache) for i in range(tokens.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)
    assert cache.keys[0].shape[2] < 8 * FIRST_POSITIONS


def test_the_seed_alone_fixes_the_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (LlamaForCausalLM(small(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_initial_weights_are_those_of_llama2c():
    model = LlamaForCausalLM(small(hidden_size=256, intermediate_size=512, num_hidden_layers=8))
    weights = dict(model.named_parameters())
    for name, std in (("q_proj", 0.02), ("o_proj", 0.02 / 4), ("gate_proj", 0.02), ("down_proj", 0.02 / 4)):
        weight = next(value for key, value in weights.items() if name in key)
        error = 5 / math.sqrt(2 * weight.numel())  # five standard errors of a sample's std
        assert weight.std().item() == pytest.approx(std, rel=error)
    assert all(torch.all(value == 1) for key, value in weights.items() if "norm" in key)


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(UsageError, match="33 tokens and its max_position_embeddings is 32"):
        LlamaForCausalLM(small())(torch.zeros(1, 33, dtype=torch.long))
