"""A file or folder of anyone's text or code: found, read through once, and cut into training and validation text.

    PATH ──find──► files ──look──► documents ──split──► train | valid
                     └ hidden, linked, installed   └ binary, empty, unreadable, repeated: counted, and said once

With many documents some of them are held out whole; with few, the tail of each. Which, follows from
their contents alone. A document that appears twice counts once, so none is in both halves. No text is held in memory.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torchane.data.documents import Document, TextStore, document_of
from torchane.data.records import holds_records, text_of_records
from torchane.errors import DataError

VALID_SHARE = 0.1
LARGEST_VALID_BYTES = 512 << 10  # some 200,000 tokens: more would cost time and tell nothing new
FEWEST_WHOLE_DOCUMENTS = 20  # below this the tail of each document is held out
#: Folders of what others wrote and a tool put there.
INSTALLED = ("node_modules", "bower_components", "site-packages", "__pycache__")
VENV_MARK = "pyvenv.cfg"


@dataclass
class Corpus:
    """The documents found at a path, in the order of their names, and what was left out, by reason. records: files whose text
    was taken out of JSON.
    """

    path: Path
    documents: list[Document]
    size_bytes: int
    skipped: Counter[str] = field(default_factory=Counter)
    records: int = 0

    def describe(self) -> str:
        """One line: what was read, what was skipped and why."""
        files = "1 file" if len(self.documents) == 1 else f"{len(self.documents):,} files"
        line = f"{self.path}: {files}, {self.size_bytes:,} bytes of text"
        if self.records:
            line += f" ({self.records:,} of JSON: the text of their records or cells)"
        if self.skipped:
            line += f"; skipped {sum(self.skipped.values()):,} ({_reasons(self.skipped)})"
        return line


def read_corpus(path: str | os.PathLike[str], folder: Path) -> Corpus:
    """Looks through every text below path; text out of JSON is kept in a file without a name in `folder`.
    Raises DataError if there is none, saying what there is instead.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise DataError(
            f"There is no {path}. Give --data a file or folder of text, or leave it out to train on our stories."
        )
    corpus = Corpus(path, [], 0)
    seen: set[bytes] = set()
    store = TextStore(folder)
    for file in _find(path, corpus.skipped):
        try:
            document = _read(file, store, corpus)
        except OSError as error:
            document = f"unreadable: {error.strerror}"
        except DataError:
            if file == path:
                raise
            document = "JSON without text"
        if isinstance(document, str):
            corpus.skipped[document] += 1
        elif document.digest in seen:
            corpus.skipped["repeated"] += 1
        else:
            seen.add(document.digest)
            corpus.documents.append(document)
            corpus.size_bytes += document.size_bytes
    if not corpus.documents:
        raise DataError(_no_text(path, corpus.skipped))
    return corpus


def _read(file: Path, store: TextStore, corpus: Corpus) -> Document | str:
    if holds_records(file):
        place = text_of_records(file, store)
        if place is not None:
            corpus.records += 1
            return document_of(store, *place)
    return document_of(file)


def _find(path: Path, skipped: Counter[str]) -> Iterator[Path]:
    """The files to read, sorted by name. A link inside a folder is not followed: it may lead back or out."""
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path} is neither a file nor a folder. Give --data a file or folder of text.")
        yield path
        return

    def cannot_list(error: OSError) -> None:
        skipped[f"unreadable: {error.strerror}"] += 1

    for folder, folders, names in os.walk(path, onerror=cannot_list):
        kept = []
        for name in sorted(folders):
            if name.startswith("."):
                skipped["hidden"] += 1
            elif os.path.islink(os.path.join(folder, name)):
                skipped["links"] += 1
            elif name in INSTALLED or os.path.exists(os.path.join(folder, name, VENV_MARK)):
                skipped["folders of installed packages"] += 1
            else:
                kept.append(name)
        folders[:] = kept
        for name in sorted(names):
            file = Path(folder, name)
            if name.startswith("."):
                skipped["hidden"] += 1
            elif file.is_symlink():
                skipped["links"] += 1
            elif not file.is_file():  # a socket or a pipe would be waited for
                skipped["not files"] += 1
            else:
                yield file


def size_of(path: Path) -> int:
    """Bytes of all files that would be looked at. Raises DataError where there is nothing."""
    if not path.exists():
        raise DataError(f"There is no {path}. Give --data a file or folder of text.")
    return sum(file.lstat().st_size if file != path else file.stat().st_size for file in _find(path, Counter()))


def _reasons(skipped: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))


def _no_text(path: Path, skipped: Counter[str]) -> str:
    if not path.is_dir():
        why = next(iter(skipped))
        known = {"empty": "is empty", "binary": "is a binary file", "not UTF-8": "is not UTF-8 text"}
        return f"{path} {known.get(why, f'is {why}')}. Give --data text in UTF-8: books, notes, source code."
    if not skipped:
        return f"The folder {path} is empty. Give --data a folder that holds text in UTF-8."
    return (
        f"The folder {path} holds no text: {sum(skipped.values()):,} skipped ({_reasons(skipped)}). "
        "Give --data a folder that holds text in UTF-8: books, notes, source code."
    )


def split_documents(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """(train, valid): about a tenth of the text is held out, no more than LARGEST_VALID_BYTES.

    Documents are drawn by the hash of their contents, so that neither names nor order matter; one
    that is larger than what is still wanted is passed over. Few documents, or ones too large, give
    their tails instead, cut where a line begins if there is such a place.
    """
    sizes = [document.size_bytes for document in documents]
    wanted = min(VALID_SHARE * sum(sizes), LARGEST_VALID_BYTES)
    if len(documents) >= FEWEST_WHOLE_DOCUMENTS:
        held_out: set[int] = set()
        held_bytes = 0
        for i in sorted(range(len(documents)), key=lambda i: documents[i].digest):
            if held_bytes + sizes[i] <= wanted:
                held_out.add(i)
                held_bytes += sizes[i]
        if held_bytes >= wanted / 2:
            train = [document for i, document in enumerate(documents) if i not in held_out]
            return train, [documents[i] for i in sorted(held_out)]
    share = wanted / sum(sizes)
    cuts = [document.cut(share) for document in documents]
    return [part for part, _ in cuts if part.size_bytes], [part for _, part in cuts if part.size_bytes]
