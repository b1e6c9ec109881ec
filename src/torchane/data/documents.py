"""Documents: UTF-8 text in files, read a piece at a time, so that a text may be larger than memory.

    file ──► [ offset ... offset + size ) ──pieces──► "64K characters, cut at a line's end", ..., None, ...

None stands where a document ends inside the range: a line of <|endoftext|> alone, as TinyStories and what is made of .jsonl here
have it. The same words inside a line are text.
"""

import codecs
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchane.data.tokenizer import END, slices_of
from torchane.models.files import open_regular

_BLOCK_BYTES = 1 << 20
_PROBE_BYTES = 8192
_NEAR_BYTES = 1000  # how far before its place a cut looks for a line's start
_END_LINE = re.compile(rf"^{re.escape(END)}[ \t]*(?:\r?\n|\Z)", re.MULTILINE)
_BYTE_ORDER_MARK = codecs.BOM_UTF8
LARGEST_FILE_BYTES = 1 << 50


@dataclass(frozen=True)
class Document:
    """size_bytes of a source, from offset on. source: a file, a TextStore, or bytes. digest: SHA-256 of all."""

    source: Any
    offset: int
    size_bytes: int
    digest: bytes

    @classmethod
    def of_text(cls, text: str) -> "Document":
        return cls(text.encode(), 0, len(text.encode()), hashlib.sha256(text.encode()).digest())

    def read(self) -> str:
        """All of it: for small ones."""
        return b"".join(self._blocks()).decode()

    def pieces(self) -> Iterator[str | None]:
        """Its text in slices, cut as tokenizers need it, and None between documents in it."""
        for text in slices_of(self._texts()):
            if END not in text:
                yield text
                continue
            parts = _END_LINE.split(text)
            for index, part in enumerate(parts):
                if index:
                    yield None
                if part:
                    yield part

    def cut(self, share: float) -> tuple["Document", "Document"]:
        """It without its last share, and that: where a line begins nearby, else between characters."""
        at = self.size_bytes - round(share * self.size_bytes)
        with self._open() as file:
            begin = max(0, at - _NEAR_BYTES)
            file.seek(self.offset + begin)
            line_start = begin + file.read(at - begin).rfind(b"\n") + 1
            at = line_start if line_start > begin else self._character(at)
            file.seek(self.offset + at)
            end_line = _END_LINE.match(file.read(len(END) + 2).decode(errors="replace"))
        if end_line is not None and at + end_line.end() < self.size_bytes:  # it belongs to what it ends
            at += end_line.end()
        return replace(self, size_bytes=at), replace(self, offset=self.offset + at, size_bytes=self.size_bytes - at)

    def part(self, begin: int, size_bytes: int) -> "Document":
        """About so many bytes from `begin` on, of whole characters."""
        start, end = (self._character(min(at, self.size_bytes)) for at in (begin, begin + size_bytes))
        return replace(self, offset=self.offset + start, size_bytes=end - start)

    def _character(self, at: int) -> int:
        """The first place from `at` on where a character begins, or the end."""
        with self._open() as file:
            file.seek(self.offset + at)
            after = file.read(min(4, self.size_bytes - at))
        return at + next((k for k, byte in enumerate(after) if byte & 0xC0 != 0x80), len(after))

    def _texts(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        for block in self._blocks():
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)

    def _blocks(self) -> Iterator[bytes]:
        with self._open() as file:
            file.seek(self.offset)
            left = self.size_bytes
            while left and (block := file.read(min(left, _BLOCK_BYTES))):
                left -= len(block)
                yield block

    def _open(self) -> Any:
        if isinstance(self.source, bytes):
            return io.BytesIO(self.source)
        if isinstance(self.source, Path):
            return open_regular(self.source, LARGEST_FILE_BYTES)
        return self.source.open()


class TextStore:
    """Texts one after another in one file in `folder` that has no name and goes with the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None
        self._end = 0

    def add(self, texts: Iterator[str]) -> tuple[int, int]:
        """Offset and size of these texts, a line of END after each. Raises OSError, and what `texts` raises."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  (open as long as its documents)
        begin = self._end
        self._file.seek(begin)
        for text in texts:
            data = f"{text}\n{END}\n".encode(errors="replace")
            self._file.write(data)
            self._end += len(data)
        self._file.flush()
        return begin, self._end - begin

    def open(self) -> Any:
        """To read from. Readers share one position, so each seeks first and none reads while another does."""
        return open(os.dup(self._file.fileno()), "rb")

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


def document_of(source: Any, offset: int = 0, size_bytes: int | None = None) -> Document | str:
    """The document in a file, or in a part of one; or why it is none: empty, binary, not UTF-8. Raises OSError."""
    whole = Document(source, offset, LARGEST_FILE_BYTES if size_bytes is None else size_bytes, b"")
    decoder, total = codecs.getincrementaldecoder("utf-8")(), hashlib.sha256()
    size, has_text, mark = 0, False, 0
    try:
        for block in whole._blocks():
            if not size:
                if b"\0" in block[:_PROBE_BYTES]:
                    return "binary"
                mark = len(_BYTE_ORDER_MARK) if block.startswith(_BYTE_ORDER_MARK) else 0
            size += len(block)
            total.update(block)
            has_text = has_text or bool(block.strip())
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "not UTF-8"
    if not has_text or size == mark:
        return "empty"
    return Document(source, offset + mark, size - mark, total.digest())
