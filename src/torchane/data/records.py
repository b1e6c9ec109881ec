"""Text inside of JSON: .jsonl and .ndjson, arrays of objects in .json (the stories of llama2.c), notebooks (.ipynb).

A record's text is its "text", "content" or "story"; a notebook's are its cells, without what they printed. It is written
as plain text into a file without a name, with a line of <|endoftext|> after each document, and read from there as any other.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchane.data.documents import LARGEST_FILE_BYTES, TextStore
from torchane.errors import DataError
from torchane.models.files import open_regular, parse_json

TEXT_KEYS = ("text", "content", "story")
LINES = (".jsonl", ".ndjson")
NOTEBOOK = ".ipynb"
WHOLE = (NOTEBOOK, ".json")
LARGEST_JSON_BYTES = 256 << 20  # .json is read whole; it takes some ten times its size
LARGEST_LINE_BYTES = 64 << 20


def holds_records(path: Path) -> bool:
    """Whether the name says so."""
    return path.suffix.lower() in (*LINES, *WHOLE)


def text_of_records(path: Path, store: TextStore) -> tuple[int, int] | None:
    """Offset and size of the text of a file's records, once in the store; None where a .json holds something else
    than records and is text as it stands. Raises DataError, OSError.
    """
    kind = path.suffix.lower()
    try:
        texts = _of_lines(path) if kind in LINES else _of_notebook(path) if kind == NOTEBOOK else _of_array(path)
        return None if texts is None else store.add(texts)
    except ValueError as error:
        raise DataError(f"{path} is not what its name says: {error}. Mend it, or give the text itself, as .txt.") from error


def _of_lines(path: Path) -> Iterator[str]:
    with open_regular(path, LARGEST_FILE_BYTES) as file:
        number = 0
        while line := file.readline(LARGEST_LINE_BYTES):
            number += 1
            if not line.strip():
                continue
            try:
                record = parse_json(line.decode())
            except ValueError as error:
                raise ValueError(f"its line {number:,} is no JSON ({str(error)[:80]})") from error
            text = _text_of(record)
            if text is None:
                raise DataError(_no_text(path, f"line {number:,}", record))
            yield text


def _of_array(path: Path) -> Iterator[str] | None:
    try:
        records = _whole(path)
    except ValueError:
        return None  # with comments, or cut: text as it stands
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        return None
    texts = [_text_of(record) for record in records]
    return None if None in texts else iter(texts)


def _of_notebook(path: Path) -> Iterator[str]:
    notebook = _whole(path)
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise ValueError("it has no cells")
    sources = [cell.get("source") for cell in cells if isinstance(cell, dict)]
    texts = ["".join(map(str, source)) if isinstance(source, list) else str(source or "") for source in sources]
    return iter(["\n\n".join(text for text in texts if text.strip())])


def _whole(path: Path) -> Any:
    with open_regular(path, LARGEST_JSON_BYTES) as file:
        return parse_json(file.read().decode())


def _text_of(record: Any) -> str | None:
    if isinstance(record, str):
        return record
    found = (record.get(key) for key in TEXT_KEYS) if isinstance(record, dict) else ()
    return next((text for text in found if isinstance(text, str)), None)


def _no_text(path: Path, where: str, record: Any) -> str:
    held = f"has the keys {', '.join(map(str, record))}" if isinstance(record, dict) else f"is {json.dumps(record)[:40]}"
    return (
        f"{path}, {where}: text is taken from {', '.join(map(repr, TEXT_KEYS))}, and this record {held[:200]}. Write the text "
        "into one of those, or give it as .txt."
    )
