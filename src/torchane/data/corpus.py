"""A file or folder of anyone's text or code: found, read, and cut into training and validation text.

    PATH ──find──► files ──read──► documents ──split──► train | valid
                     └ hidden, linked, huge      └ binary, empty, unreadable, repeated: counted, and said once

With many documents some of them are held out whole; with few, the tail of each. Which, follows from
their contents alone. A document that appears twice counts once, so none is in both halves.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torchane.errors import DataError

LARGEST_FILE_BYTES = 256 << 20  # a file is read whole
LARGEST_CORPUS_BYTES = 1 << 30  # text and tokens are kept in memory, some 4 bytes for each of these
VALID_SHARE = 0.1
LARGEST_VALID_BYTES = 512 << 10  # some 200,000 tokens: more would cost time and tell nothing new
FEWEST_WHOLE_DOCUMENTS = 20  # below this the tail of each document is held out
_PROBE_BYTES = 8192


@dataclass
class Corpus:
    """The documents read from a path, in the order of their names, and what was left out, by reason."""

    path: Path
    documents: list[str]
    size_bytes: int
    skipped: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """One line: what was read, what was skipped and why."""
        files = "1 file" if len(self.documents) == 1 else f"{len(self.documents):,} files"
        line = f"{self.path}: {files}, {self.size_bytes:,} bytes of text"
        if self.skipped:
            line += f"; skipped {sum(self.skipped.values()):,} ({_reasons(self.skipped)})"
        return line


def read_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Reads every text below path. Raises DataError if there is none, saying what there is instead."""
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"There is no {path}. Give --data a file or folder of text, or leave it out to train on our stories."
        )
    corpus = Corpus(path, [], 0)
    seen: set[bytes] = set()
    for file in _find(path, corpus.skipped):
        if corpus.size_bytes >= LARGEST_CORPUS_BYTES:
            corpus.skipped[f"after the first {LARGEST_CORPUS_BYTES >> 20:,} MiB"] += 1
            continue
        try:
            raw = file.read_bytes()
        except OSError as error:
            corpus.skipped[f"unreadable: {error.strerror}"] += 1
            continue
        text = _decode(raw, corpus.skipped)
        if text is None:
            continue
        digest = hashlib.sha256(raw).digest()
        if digest in seen:
            corpus.skipped["repeated"] += 1
            continue
        seen.add(digest)
        corpus.documents.append(text)
        corpus.size_bytes += len(text.encode())
    if not corpus.documents:
        raise DataError(_no_text(path, corpus.skipped))
    return corpus


def _find(path: Path, skipped: Counter[str]) -> Iterator[Path]:
    """The files to read, sorted by name. A link inside a folder is not followed: it may lead back or out."""
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path} is neither a file nor a folder. Give --data a file or folder of text.")
        size = path.stat().st_size
        if size > LARGEST_FILE_BYTES:
            raise DataError(
                f"{path} has {size:,} bytes, and the largest file that is read has {LARGEST_FILE_BYTES:,}. "
                "Cut it into several files in a folder (split -l 1000000), and give --data the folder."
            )
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
            elif file.stat().st_size > LARGEST_FILE_BYTES:
                skipped[f"larger than {LARGEST_FILE_BYTES >> 20} MiB"] += 1
            else:
                yield file


def _decode(raw: bytes, skipped: Counter[str]) -> str | None:
    if not raw.strip():
        skipped["empty"] += 1
        return None
    if b"\0" in raw[:_PROBE_BYTES]:
        skipped["binary"] += 1
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        skipped["not UTF-8"] += 1
        return None


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


def split_documents(documents: list[str]) -> tuple[list[str], list[str]]:
    """(train, valid): about a tenth of the text is held out, no more than LARGEST_VALID_BYTES.

    Documents are drawn by the hash of their contents, so that neither names nor order matter; one
    that is larger than what is still wanted is passed over. Few documents, or ones too large, give
    their tails instead, cut where a line begins if there is such a place.
    """
    sizes = [len(document.encode()) for document in documents]
    wanted = min(VALID_SHARE * sum(sizes), LARGEST_VALID_BYTES)
    if len(documents) >= FEWEST_WHOLE_DOCUMENTS:
        held_out: set[int] = set()
        held_bytes = 0
        ranked = sorted(range(len(documents)), key=lambda i: hashlib.sha256(documents[i].encode()).digest())
        for i in ranked:
            if held_bytes + sizes[i] <= wanted:
                held_out.add(i)
                held_bytes += sizes[i]
        if held_bytes >= wanted / 2:
            train = [document for i, document in enumerate(documents) if i not in held_out]
            return train, [documents[i] for i in sorted(held_out)]
    share = wanted / sum(sizes)
    cuts = [_cut(document, share) for document in documents]
    train = [document[:at] for document, at in zip(documents, cuts, strict=True)]
    valid = [document[at:] for document, at in zip(documents, cuts, strict=True)]
    return [text for text in train if text], [text for text in valid if text]


def _cut(document: str, share: float) -> int:
    """Where the last share of document begins: after a line end nearby, else between characters."""
    at = len(document) - round(share * len(document))
    line_start = document.rfind("\n", 0, at) + 1
    return line_start if line_start > at - 1000 and line_start > 0 else at
