"""Documents in files: the same slices, cuts and tokens as of the whole text, whatever its characters."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane.data import documents, tokenizer
from torchane.data.dataset import corpus_dataset
from torchane.data.documents import Document, document_of
from torchane.data.tokenizer import END, Tokenizer

TEXTS = st.text(st.one_of(st.sampled_from("ab \n\n"), st.characters(exclude_categories=["Cs"])), max_size=300)


@given(TEXTS)
@settings(deadline=None)
def test_pieces_are_the_slices_of_the_whole_text(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "SLICE_CHARS", 16)
        patch.setattr(documents, "_BLOCK_BYTES", 7)  # characters lie across blocks
        if END not in text:
            assert list(Document.of_text(text).pieces()) == [part for _, part in tokenizer._slices([text])]


@given(TEXTS, st.floats(0, 1))
@settings(deadline=None)
def test_a_cut_loses_nothing_and_lies_between_characters(text: str, share: float) -> None:
    first, last = Document.of_text(text).cut(share)
    assert first.read() + last.read() == text


@given(TEXTS, st.integers(1, 40))
@settings(deadline=None)
def test_parts_side_by_side_are_the_whole(text: str, size: int) -> None:
    document = Document.of_text(text)
    assert "".join(document.part(begin, size).read() for begin in range(0, document.size_bytes, size)) == text


@pytest.mark.parametrize(("text", "pieces"), [
    (f"one\n{END}\ntwo\n{END}\n", ["one\n", None, "two\n", None]),
    (f"one\r\n{END}\r\ntwo", ["one\r\n", None, "two"]),
    (f"{END}\none", [None, "one"]),
    (f"a story\n{END}", ["a story\n", None]),
    (f"say {END} aloud\n {END}\n{END}!\n", [f"say {END} aloud\n {END}\n{END}!\n"]),
])  # fmt: skip
def test_a_line_of_end_alone_ends_a_document_and_inside_a_line_it_is_text(text: str, pieces: list[str | None]) -> None:
    assert list(Document.of_text(text).pieces()) == pieces


@pytest.mark.parametrize(("content", "what"), [
    (b"", "empty"), (b" \n\t", "empty"), (b"\xef\xbb\xbf", "empty"), (b"a\0b", "binary"), (b"caf\xe9", "not UTF-8"),
    ("é".encode()[:1], "not UTF-8"),
])  # fmt: skip
def test_what_is_no_text_says_why(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "x").write_bytes(content)
    assert document_of(tmp_path / "x") == what


def test_a_corpus_has_the_tokens_of_its_texts_with_end_around_each(tmp_path: Path) -> None:
    texts = ["".join(f"{name} ä line {i}\n" for i in range(4000)) for name in ("one", "two")]
    for name, text in zip("ab", texts, strict=True):
        (tmp_path / f"{name}.txt").write_text(text)
    dataset = corpus_dataset(tmp_path, 300)
    used = dataset.tokenizer
    assert used is not None and used.to_text() == Tokenizer.train(_halves(texts)[0], 300).to_text()
    for split, half in zip((dataset.train, dataset.valid), _halves(texts), strict=True):
        expected = [used.end_id, *(token for text in used.encode_all(half) for token in (*text, used.end_id))]
        assert np.array_equal(split.stream, expected)


def _halves(texts: list[str]) -> list[list[str]]:
    cuts = [Document.of_text(text).cut(0.1) for text in texts]
    return [[cut[k].read() for cut in cuts] for k in (0, 1)]
