"""The GPT-2 against transformers' own, and what its initial weights and errors promise."""

import math

import pytest
import torch
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel as TheirModel

from torchane.errors import ParseError, UsageError
from torchane.models.common import KeyValueCache
from torchane.models.config import GPT2Config
from torchane.models.gpt2 import GPT2LMHeadModel

TOKENS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))


def small(**changes) -> GPT2Config:
    sizes = {"vocab_size": 96, "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    return GPT2Config(**{**sizes, **changes})


def theirs(model: GPT2LMHeadModel) -> TheirModel:
    other = TheirModel(TheirConfig.from_dict(model.config.to_dict()))
    missing = other.load_state_dict(model.state_dict(), strict=False)
    assert not missing.unexpected_keys and not missing.missing_keys
    return other


def test_logits_and_gradients_are_those_of_transformers():
    ours = GPT2LMHeadModel(small(layer_norm_epsilon=1e-3), seed=1).eval()
    other = theirs(ours).eval()
    got, want = ours(TOKENS), other(TOKENS).logits
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)  # float32, sums in another order
    got.square().mean().backward()
    want.square().mean().backward()
    gradients = {name: weight.grad for name, weight in other.named_parameters()}
    for name, weight in ours.named_parameters():
        largest = gradients[name].abs().max().item()
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-5 * largest)


def test_dropout_draws_what_transformers_draws():
    ours = GPT2LMHeadModel(small(embd_pdrop=0.3, attn_pdrop=0.2), seed=1)
    other = theirs(ours).train()
    losses = []
    for forward in (ours, lambda tokens: other(tokens).logits):
        torch.manual_seed(3)
        losses.append(forward(TOKENS))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(losses[0], ours.eval()(TOKENS), atol=0.1)


def test_a_cache_gives_the_logits_of_the_whole_sequence():
    model = GPT2LMHeadModel(small(), seed=2).eval()
    with torch.no_grad():
        whole = model(TOKENS)
        cache = KeyValueCache(model.config, batch_size=2)
        parts = [model(TOKENS[:, :5], cache)] + [model(TOKENS[:, i : i + 1], cache) for i in range(5, 12)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-4)


def test_initial_weights_are_those_of_transformers_and_norms_start_at_one():
    model = GPT2LMHeadModel(small(n_embd=128, n_layer=8, initializer_range=0.02))
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert torch.all(weight == (1 if name.endswith("weight") else 0)), name
        else:
            std = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            error = 5 / math.sqrt(2 * weight.numel())  # five standard errors of a sample's std
            assert weight.std().item() == pytest.approx(std, rel=error), name


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(UsageError, match="33 tokens and its max_position_embeddings is 32"):
        GPT2LMHeadModel(small())(torch.zeros(1, 33, dtype=torch.long))


def test_transformers_reads_our_config_and_we_read_what_it_writes():
    config = small(n_layer=3, attn_pdrop=0.0, eos_token_id=3)
    written = TheirConfig.from_dict(config.to_dict()).to_dict()
    assert GPT2Config.from_dict(written) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [("activation_function", "relu"), ("n_inner", 100), ("scale_attn_weights", False), ("add_cross_attention", True),
     ("tie_word_embeddings", False), ("scale_attn_by_inverse_layer_idx", True)],
)  # fmt: skip
def test_another_architecture_is_refused_by_the_name_of_its_key(key, value):
    with pytest.raises(ParseError, match=f"x/config.json: {key} is {value!r}"):
        GPT2Config.from_dict({**small().to_dict(), key: value}, source="x/config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n_head": 3}, "n_embd 64 is not a multiple of n_head 3"), ({"n_layer": 0}, "n_layer is 0"),
     ({"n_embd": "64"}, "n_embd is '64'"), ({"attn_pdrop": 1.0}, "attn_pdrop is 1.0"),
     ({"embd_pdrop": None}, "embd_pdrop is None")],
)  # fmt: skip
def test_values_that_make_no_model_are_refused(changes, message):
    with pytest.raises(ParseError, match=f"config.json: {message}"):
        GPT2Config.from_dict({**small().to_dict(), **changes})
