"""Decoding: the same tokens as running the whole model each time, and what ends it."""

import pytest
import torch
import transformers

from torchane.errors import UsageError
from torchane.generate.decode import decode, draw
from torchane.models.build import build_model
from torchane.models.config import GPT2Config, LlamaConfig

CONFIG = LlamaConfig(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.3)  # fmt: skip
THEIR_CONFIGS = {"llama": "LlamaConfig", "gpt2": "GPT2Config"}


GPT2 = GPT2Config(vocab_size=96, n_positions=16, n_embd=64, n_layer=2, n_head=4, initializer_range=0.3)


@pytest.fixture(scope="module", params=[CONFIG, GPT2], ids=["llama", "gpt2"])
def model(request):
    return build_model(request.param, seed=3).eval()


def test_greedy_decoding_gives_what_transformers_generates(model):
    config = model.config.to_dict()
    other = getattr(transformers, config["architectures"][0])(getattr(transformers, THEIR_CONFIGS[config["model_type"]])(**config))
    other.load_state_dict(model.state_dict(), strict=False)
    prompt = torch.tensor([[5, 7, 11]])
    want = other.eval().generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert list(decode(model, prompt[0].tolist(), max_tokens=12, temperature=0)) == want[0, 3:].tolist()


def test_greedy_decoding_takes_the_likeliest_token_of_the_whole_model(model):
    tokens = [5, 7, 11]
    got = list(decode(model, tokens, max_tokens=12, temperature=0))
    for token in got:
        with torch.no_grad():
            assert token == int(model(torch.tensor([tokens]))[0, -1].argmax())
        tokens = [*tokens, token]


def test_it_goes_on_beyond_the_models_positions_from_the_later_half(model):
    tokens = [5]
    got = list(decode(model, tokens, max_tokens=40, temperature=0))
    assert len(got) == 40
    seen = [*tokens, *got[:16]]  # 17 tokens where 16 fit: the model sees the last 8
    with torch.no_grad():
        assert got[16] == int(model(torch.tensor([seen[-8:]]))[0, -1].argmax())


def test_a_long_prompt_keeps_its_end(model):
    prompt = list(range(50))
    assert list(decode(model, prompt, max_tokens=1, temperature=0)) == list(
        decode(model, prompt[-16:], max_tokens=1, temperature=0)
    )


def test_the_seed_decides_the_draws(model):
    first, again, other = (list(decode(model, [1], max_tokens=20, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_it_ends_before_the_end_token(model):
    got = list(decode(model, [5], max_tokens=10, temperature=0))
    assert list(decode(model, [5], max_tokens=10, temperature=0, end_id=got[4])) == got[: got.index(got[4])]


def test_only_the_tokenizers_tokens_are_drawn(model):
    assert max(decode(model, [1], max_tokens=50, temperature=5.0, vocab_size=10)) < 10


def test_top_k_draws_from_the_k_likeliest():
    logits = torch.tensor([0.0, 5.0, 1.0, 4.0])
    generator = torch.Generator().manual_seed(0)
    assert {draw(logits, 100.0, 2, generator) for _ in range(100)} == {1, 3}


def test_draws_follow_the_softmax_of_logits_over_temperature():
    logits = torch.tensor([0.0, 1.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw(logits, 0.5, None, generator) for _ in range(4000)])
    want = torch.softmax(logits / 0.5, 0)
    assert torch.allclose(torch.bincount(drawn, minlength=3) / 4000, want, atol=0.025)  # three standard errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": []}, "at least one token"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_k": -1}, "top_k is -1"),
    ],
)
def test_arguments_out_of_range_are_refused(model, changes, message):
    arguments = {"tokens": [1], **changes}
    with pytest.raises(UsageError, match=message):
        list(decode(model, max_tokens=1, **arguments))
