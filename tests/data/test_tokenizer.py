"""The tokenizer: nothing lost, bytes counted exactly, files that load again."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from torchane.data.stories import write_stories
from torchane.data.tokenizer import END, Tokenizer
from torchane.errors import DataError

TOKENIZER = Tokenizer.train(write_stories(200, 0), 400)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_comes_back_and_its_bytes_add_up(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert TOKENIZER.decode(tokens) == text
    assert TOKENIZER.count_bytes(np.array(tokens, dtype=np.int64)) == len(text.encode())


@given(st.binary(max_size=64))
def test_every_byte_has_a_token(raw: bytes) -> None:
    text = raw.decode("utf-8", errors="replace")
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_a_text_that_spells_the_end_token_stays_text() -> None:
    text = f"before {END} after"
    tokens = TOKENIZER.encode(text)
    assert TOKENIZER.end_id not in tokens
    assert TOKENIZER.decode(tokens) == text


def test_the_end_token_stands_for_no_bytes_and_says_nothing() -> None:
    assert TOKENIZER.byte_counts[TOKENIZER.end_id] == 0
    assert TOKENIZER.decode([TOKENIZER.end_id, *TOKENIZER.encode("fox"), TOKENIZER.end_id]) == "fox"


def test_the_same_texts_give_the_same_tokenizer() -> None:
    assert Tokenizer.train(write_stories(200, 0), 400).to_text() == TOKENIZER.to_text()


def test_a_large_corpus_is_sampled_all_over() -> None:
    texts = ["abab" * 50, "cdcd" * 50, "efef" * 50, "ghgh" * 50]
    sampled = Tokenizer.train(texts, 300, sample_chars=400)  # every second text
    assert sampled.to_text() == Tokenizer.train(texts[::2], 300).to_text()


def test_the_vocabulary_has_the_size_asked_for() -> None:
    assert TOKENIZER.vocab_size == 400 == len(TOKENIZER.byte_counts)


def test_a_text_with_few_pairs_gives_a_smaller_vocabulary() -> None:
    assert Tokenizer.train(["aaaa"], 1000).vocab_size < 300


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(DataError, match="A vocabulary of 256 cannot hold.*257 or more"):
        Tokenizer.train(["text"], 256)


def test_a_saved_tokenizer_loads_as_the_same(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_text(), encoding="utf-8")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    text = f"Rosa, a strict knitter {END} é"
    assert again.encode(text) == TOKENIZER.encode(text)
    assert again.to_text() == TOKENIZER.to_text()
    assert np.array_equal(again.byte_counts, TOKENIZER.byte_counts)


def test_hugging_face_reads_the_file_and_gives_the_same_tokens() -> None:
    theirs = tokenizers.Tokenizer.from_str(TOKENIZER.to_text())
    story = write_stories(1, 7)[0]
    assert theirs.encode(story).ids == TOKENIZER.encode(story)


def test_many_texts_are_encoded_as_one_by_one_with_progress() -> None:
    texts = [*write_stories(100, 3), "", "é" * 10]
    told: list[tuple[int, int]] = []
    encoded = TOKENIZER.encode_all(texts, lambda done, total: told.append((done, total)))
    assert [tokens.tolist() for tokens in encoded] == [TOKENIZER.encode(text) for text in texts]
    assert {tokens.dtype for tokens in encoded} == {np.dtype(np.uint16)}
    assert told[-1] == (sum(map(len, texts)),) * 2
    assert told == sorted(told)


def test_a_long_text_encoded_in_slices_comes_back_whole() -> None:
    text = "\n".join(write_stories(400, 5)) + "x" * 100_000
    (tokens,) = TOKENIZER.encode_all([text])
    assert TOKENIZER.decode(tokens.tolist()) == text
    assert TOKENIZER.count_bytes(tokens) == len(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.json cannot be read"):
        Tokenizer.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"model": {}}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="is not a tokenizer that we can use"):
        Tokenizer.load(path)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    described = json.loads(TOKENIZER.to_text())
    described["added_tokens"] = []
    del described["model"]["vocab"][END]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(DataError, match="has no token"):
        Tokenizer.load(path)


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer(models.BPE({"a": 0, "▁": 1, END: 2}, []))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.add_special_tokens([END])
    path = tmp_path / "tokenizer.json"
    path.write_text(inner.to_str(), encoding="utf-8")
    with pytest.raises(DataError, match="is not byte-level: its token '▁'"):
        Tokenizer.load(path)
