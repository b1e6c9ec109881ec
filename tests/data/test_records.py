"""Text inside of JSON: records, arrays, notebooks; and what is refused by name."""

import json
import tempfile
from pathlib import Path

import pytest

from torchane.data.corpus import Corpus, read_corpus
from torchane.data.dataset import corpus_dataset
from torchane.data.tokenizer import END
from torchane.errors import DataError


def corpus(path: Path) -> Corpus:
    return read_corpus(path, Path(tempfile.gettempdir()))


def text_of(path: Path) -> str:
    return corpus(path).documents[0].read()


@pytest.mark.parametrize("key", ["text", "content", "story"])
def test_lines_of_records_are_documents(tmp_path: Path, key: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"id": i, key: f"story {i}\n"}) + "\n" for i in range(3)) + "\n")
    assert text_of(path) == f"story 0\n\n{END}\nstory 1\n\n{END}\nstory 2\n\n{END}\n"
    assert "1 of JSON: the text of their records or cells" in corpus(path).describe()


def test_an_array_of_records_is_taken_likewise_and_other_json_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"story": "one"}, {"story": "two"}]))
    (tmp_path / "b.json").write_text('{"name": "left-pad"}')
    assert [document.read() for document in corpus(tmp_path).documents] == [
        f"one\n{END}\ntwo\n{END}\n", '{"name": "left-pad"}',
    ]  # fmt: skip


def test_a_notebook_is_its_cells_without_what_they_printed(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": "x = 1", "outputs": [{"data": {"image/png": "iVBORw0KG"}}]},
        {"cell_type": "code", "source": []},
    ]
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": cells}))
    assert text_of(tmp_path / "x.ipynb") == f"# Title\nwords\n\nx = 1\n{END}\n"


@pytest.mark.parametrize(("name", "content", "message"), [
    ("x.jsonl", '{"messages": []}\n', r"x.jsonl, line 1: text is taken from 'text', 'content', 'story', and this record has the keys messages"),
    ("x.jsonl", '{"text": "a"}\n{"text": 3}\n', "line 2: "), ("x.jsonl", '{"text": "a"}\n{', "its line 2 is no JSON"),
    ("x.jsonl", "[" * 10_000 + "\n", "its line 1 is no JSON"), ("x.ipynb", "{}", "it has no cells"), ("x.ipynb", "[", "is not what its name says"),
])  # fmt: skip
def test_what_holds_no_text_is_refused_by_name_and_in_a_folder_counted(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        corpus(tmp_path / name)
    (tmp_path / "a.txt").write_text("text")
    assert corpus(tmp_path).skipped == {"JSON without text": 1}


def test_documents_end_where_records_do(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": f"story {i}"}) + "\n" for i in range(500)))
    dataset = corpus_dataset(tmp_path / "x.jsonl", 300)
    assert dataset.tokenizer is not None
    ends = sum(int((split.stream == dataset.tokenizer.end_id).sum()) for split in (dataset.train, dataset.valid))
    assert ends == 500 + 2  # and one before each half
