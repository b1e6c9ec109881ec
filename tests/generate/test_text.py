"""Text from tokens: whole characters, as soon as they are whole."""

import pytest

from torchane.data.tokenizer import Tokenizer
from torchane.errors import UsageError
from torchane.generate import text as module
from torchane.generate.sampling import Sampling
from torchane.generate.text import continue_text
from torchane.models.config import LlamaConfig
from torchane.models.llama import LlamaForCausalLM


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a fox went over the hills"] * 3, 257)


def model(vocab_size):
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab_size, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                    num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16)
    )  # fmt: skip


def say(monkeypatch, tokens):
    given = []

    def decode(model, prompt, **options):
        given.append((prompt, options))
        return iter(tokens)

    monkeypatch.setattr(module, "decode", decode)
    return given


def test_a_character_of_several_tokens_comes_when_it_is_whole(monkeypatch, tokenizer):
    say(monkeypatch, tokenizer.encode("é€x"))
    assert list(continue_text(model(257), tokenizer, "", Sampling(max_tokens=9))) == ["", "é", "", "", "€", "x", ""]


def test_bytes_that_never_make_a_character_are_shown_at_the_end(monkeypatch, tokenizer):
    say(monkeypatch, tokenizer.encode("a€")[:-1])
    assert "".join(continue_text(model(257), tokenizer, "", Sampling(max_tokens=9))) == "a\ufffd"


def test_the_prompt_begins_a_document(monkeypatch, tokenizer):
    given = say(monkeypatch, [])
    list(continue_text(model(300), tokenizer, "a fox", Sampling(max_tokens=9, seed=3)))
    prompt, options = given[0]
    assert prompt == [tokenizer.end_id, *tokenizer.encode("a fox")]
    assert options["end_id"] == tokenizer.end_id and options["vocab_size"] == 257 and options["seed"] == 3


def test_a_prompt_that_fills_the_models_positions_is_refused_and_a_text_beyond_them_says_so(tokenizer):
    with pytest.raises(UsageError, match="A prompt has 16 tokens, and the model has 16 positions"):
        continue_text(model(257), tokenizer, "x" * 15, Sampling(max_tokens=1))
    for tokens, note in ((4, ""), (5, "The model has 16 positions")):
        one = module.Written("x" * 11)
        list(continue_text(model(257), tokenizer, one.prompt, Sampling(max_tokens=tokens, temperature=0), one))
        assert one.prompt_tokens + one.tokens == 12 + tokens and one.note.startswith(note) and bool(one.note) == bool(note)


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    with pytest.raises(UsageError, match="tokenizer has 257 tokens and the model 200"):
        list(continue_text(model(200), tokenizer, "", Sampling(max_tokens=1)))
