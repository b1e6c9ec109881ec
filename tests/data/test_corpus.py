"""Reading anyone's files: what counts as text, what is said of the rest, and how it is cut in two."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchane.data import corpus
from torchane.data.corpus import Corpus, split_documents
from torchane.data.documents import Document
from torchane.errors import DataError


def read_corpus(path: Path) -> Corpus:
    return corpus.read_corpus(path, Path(tempfile.gettempdir()))


def read(documents: list[Document]) -> list[str]:
    return [document.read() for document in documents]


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    train, valid = split_documents([Document.of_text(text) for text in texts])
    return read(train), read(valid)


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_file_is_one_document(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "héllo"})
    found = read_corpus(tmp_path / "a.txt")
    assert read(found.documents) == ["héllo"]
    assert found.size_bytes == 6


def test_a_folder_is_read_in_the_order_of_its_names_at_every_depth(tmp_path: Path) -> None:
    write(tmp_path, {"b.txt": "b", "a/z.txt": "az", "a/y.py": "ay", "c/d/e.md": "cde"})
    assert read(read_corpus(tmp_path).documents) == ["b", "ay", "az", "cde"]


def test_what_is_skipped_is_counted_by_reason(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "good.txt": "text",
            "same.txt": "text",
            "void.txt": "",
            "blank.txt": " \n",
            "photo.bin": b"\x89PNG\x00\x01",
            "latin.txt": "é".encode("latin-1"),
            ".hidden": "secret",
            ".git/config": "secret",
            "node_modules/left-pad/index.js": "module.exports = pad",
            "env/pyvenv.cfg": "home = /usr/bin",
            "env/lib/six.py": "import sys",
        },
    )
    found = read_corpus(tmp_path)
    assert read(found.documents) == ["text"]
    assert found.skipped == {
        "repeated": 1, "empty": 2, "binary": 1, "not UTF-8": 1, "hidden": 2, "folders of installed packages": 2
    }  # fmt: skip
    assert found.describe().endswith(
        "1 file, 4 bytes of text; skipped 9 (1 binary, 2 empty, 2 folders of installed packages, 2 hidden, 1 not UTF-8, 1 repeated)"
    )


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"\xef\xbb\xbfhello"})
    assert read(read_corpus(tmp_path / "a.txt").documents) == ["hello"]


def test_links_inside_a_folder_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path, {"data/a.txt": "text", "outside.txt": "private"})
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/out.txt").symlink_to(tmp_path / "outside.txt")
    found = read_corpus(tmp_path / "data")
    assert read(found.documents) == ["text"]
    assert found.skipped == {"links": 2}


def test_a_link_that_the_user_names_is_followed(tmp_path: Path) -> None:
    write(tmp_path, {"data/a.txt": "text"})
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert read(read_corpus(tmp_path / "link").documents) == ["text"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "text"})
    os.mkfifo(tmp_path / "pipe")
    assert read_corpus(tmp_path).skipped == {"not files": 1}
    with pytest.raises(DataError, match="pipe is neither a file nor a folder"):
        read_corpus(tmp_path / "pipe")


def test_a_file_that_cannot_be_read_is_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.txt": "text", "locked.txt": "secret"})
    look = corpus.document_of

    def refuse_locked(path: Path) -> Document | str:
        if path.name == "locked.txt":  # permissions bind no test that runs as root
            raise PermissionError(13, "Permission denied")
        return look(path)

    monkeypatch.setattr(corpus, "document_of", refuse_locked)
    assert read_corpus(tmp_path).skipped == {"unreadable: Permission denied": 1}


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "nowhere", "There is no .*nowhere. Give --data a file or folder"),
        ({}, ".", "The folder .* is empty"),
        ({"a.txt": ""}, "a.txt", "a.txt is empty. Give --data text in UTF-8"),
        ({"a.bin": b"\x00\x01"}, "a.bin", "a.bin is a binary file"),
        ({"a.txt": b"\xff\xfe\xfd"}, "a.txt", "a.txt is not UTF-8 text"),
        ({"a.bin": b"\x00", "b.txt": " "}, ".", r"holds no text: 2 skipped \(1 binary, 1 empty\)"),
    ],
)
def test_where_there_is_no_text_the_error_says_what_there_is(
    tmp_path: Path, files: dict[str, bytes | str], name: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_corpus(write(tmp_path, files) / name)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300), min_size=1, max_size=40))
def test_every_character_is_in_one_half(documents: list[str]) -> None:
    train, valid = split(documents)
    assert sorted("".join(train + valid)) == sorted("".join(documents))


def test_of_many_documents_a_tenth_is_held_out_whole() -> None:
    documents = [f"document {i}\n" * 50 for i in range(100)]
    train, valid = split(documents)
    assert set(train) | set(valid) == set(documents)
    assert not set(train) & set(valid)
    assert 0.05 <= sum(map(len, valid)) / sum(map(len, documents)) <= 0.1


def test_the_same_documents_are_held_out_in_any_order() -> None:
    documents = [f"document {i}\n" * 50 for i in range(100)]
    assert set(split(documents)[1]) == set(split(documents[::-1])[1])


def test_of_few_documents_the_tails_are_held_out_from_a_line_start() -> None:
    documents = ["".join(f"{name} line {i}\n" for i in range(1000)) for name in ("one", "two")]
    train, valid = split(documents)
    assert [a + b for a, b in zip(train, valid, strict=True)] == documents
    assert all(text.endswith("\n") for text in train)
    assert 0.09 < len(valid[0]) / len(documents[0]) < 0.11


def test_one_document_that_outweighs_the_rest_gives_its_tail() -> None:
    documents = ["line of a long book\n" * 10_000, *(f"note {i}" for i in range(30))]
    _, valid = split(documents)
    assert 0.05 <= sum(map(len, valid)) / sum(map(len, documents)) <= 0.11


def test_no_more_is_held_out_than_can_be_evaluated() -> None:
    _, valid = split(["a line of text\n" * 1_000_000])
    assert corpus.LARGEST_VALID_BYTES * 0.99 < len(valid[0]) <= corpus.LARGEST_VALID_BYTES * 1.01
