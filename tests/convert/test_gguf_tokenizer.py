"""Tokenizers between tokenizer.json and GGUF: the same tokens for the same text, and a refusal where a GGUF cannot say how."""

import json
from typing import Any

import pytest
import small_models
from tokenizers import Regex, Tokenizer, pre_tokenizers

from torchane.convert import gguf_tokenizer, spm
from torchane.convert.llama2c_tokenizer import files_for
from torchane.convert.llama2c_tokenizer import read as read_bin
from torchane.errors import ParseError, UsageError

TEXTS = ("The cat's hat, 1234 of them!", "  Two\n\n  spaces\t. ", "\u00e9t\u00e9 \u2014 \u4f60\u597d \U0001f600", "")
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(numbers: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS % numbers), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


RULES = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False), "qwen2": split(r"\p{N}"),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
}  # fmt: skip


def vocabulary(text: str, size: int = small_models.VOCAB, **about: Any) -> gguf_tokenizer.Vocabulary:
    files = {"tokenizer.json": text.encode(), "tokenizer_config.json": json.dumps(about).encode()}
    found = gguf_tokenizer.from_files(files, {"vocab_size": size}, "model")
    assert found is not None
    return found


@pytest.mark.parametrize("name", RULES)
def test_the_rule_that_splits_text_has_llama_cpps_name(name):
    assert vocabulary(small_models.byte_level(RULES[name])).pre == name


def test_the_rule_of_llama_3_takes_whole_words_first():
    described = json.loads(small_models.byte_level(split(r"\p{N}{1,3}")))
    with pytest.raises(UsageError, match="llama.cpp knows no name"):
        vocabulary(json.dumps(described))
    described["model"]["ignore_merges"] = True
    assert vocabulary(json.dumps(described)).pre == "llama-bpe"


def test_a_rule_without_a_name_is_refused():
    with pytest.raises(UsageError, match="llama.cpp knows no name for how its tokenizer splits text.*Whitespace.*gpt-2, llama-bpe"):
        vocabulary(small_models.byte_level(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), RULES["gpt-2"]])))


@pytest.mark.parametrize("name", RULES)
def test_a_byte_level_tokenizer_comes_back(name):
    text = small_models.byte_level(RULES[name])
    back = Tokenizer.from_str(gguf_tokenizer.to_files(vocabulary(text, eos_token="<|endoftext|>"), "x")["tokenizer.json"].decode())
    one = Tokenizer.from_str(text)
    for each in TEXTS:
        assert one.encode(each).ids == back.encode(each).ids
        assert one.decode(one.encode(each).ids) == back.decode(back.encode(each).ids)


def test_tokens_that_nothing_has_fill_up_the_models_rows():
    found = vocabulary(small_models.byte_level(), 400)
    assert len(found.tokens) == 400 and found.tokens[399] == "[PAD399]" and found.kinds[399] == spm.UNUSED


def test_a_token_beyond_the_model_is_refused():
    with pytest.raises(UsageError, match="its tokenizer has token 307 and the model's vocab_size is 300"):
        vocabulary(small_models.byte_level(), 300)


def test_what_begins_a_text_is_what_the_tokenizer_does():
    described = json.loads(small_models.byte_level())
    assert not vocabulary(json.dumps(described), bos_token="<|endoftext|>").add_bos
    described["post_processor"] = spm.begins_with("<|endoftext|>", 0)
    assert vocabulary(json.dumps(described), bos_token="<|endoftext|>").add_bos


@pytest.fixture(scope="module")
def llama2(shared_data):
    """(the tokenizer.json made of llama2.c's tokenizer.bin, sentencepiece on the model that it was made of)."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    files = files_for(shared_data / "llama2c" / "model.bin", None, 32000)
    return files["tokenizer.json"].decode(), sentencepiece.SentencePieceProcessor(model_file=str(shared_data / "llama2c" / "tokenizer.model"))


def test_a_tokenizer_bin_gives_sentencepieces_tokens(llama2):
    tokenizer = Tokenizer.from_str(llama2[0])
    for text in TEXTS:
        assert tokenizer.encode(text).ids == [1, *llama2[1].encode(text)]
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_scores_and_merges_of_sentencepiece_say_the_same(llama2):
    found = vocabulary(llama2[0], 32000, bos_token="<s>", eos_token="</s>")
    assert (found.model, found.add_bos, found.add_space) == ("llama", True, True)
    assert found.special == {"bos": 1, "eos": 2, "unknown": 0} and found.kinds[:4] == [spm.UNKNOWN, spm.CONTROL, spm.CONTROL, spm.BYTE]
    back = Tokenizer.from_str(gguf_tokenizer.to_files(found, "x")["tokenizer.json"].decode())
    assert [back.encode(text).ids for text in TEXTS] == [Tokenizer.from_str(llama2[0]).encode(text).ids for text in TEXTS]


def test_merges_that_scores_cannot_say_are_refused():
    vocab = {piece: number for number, piece in enumerate(("a", "b", "c", "ab", "bc", "abc"))}
    assert spm.scores_of(vocab, [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")], "m")[3:] == [0.0, -1.0, -2.0]
    with pytest.raises(UsageError, match="'abc' is not joined from 'ab' and 'c'"):
        spm.scores_of(vocab, [("a", "b"), ("b", "c"), ("a", "bc")], "m")
    with pytest.raises(UsageError, match="make 'abc' do not stand together"):
        spm.scores_of(vocab, [("a", "bc"), ("a", "b"), ("ab", "c"), ("b", "c")], "m")


@pytest.mark.parametrize("data", [b"", b"\0" * 11, b"\0" * 4 + b"\0\0\0\0\xff\xff\xff\x7f", b"\0" * 4 + b"\0\0\0\0\xff\xff\xff\xff"])
def test_a_damaged_tokenizer_bin_is_an_error(tmp_path, data):
    (tmp_path / "t.bin").write_bytes(data)
    with pytest.raises(ParseError, match="t.bin"):
        read_bin(tmp_path / "t.bin")
