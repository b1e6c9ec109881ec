"""What a run trains on: a tokenizer and two streams of tokens, from our stories or the user's text.

    stories_dataset(seed, vocab_size)  ─┐
    corpus_dataset(path, vocab_size)   ─┼──► Dataset ──► train_batches(...), valid_batches(...)
    tokens_dataset(files, vocab_size)  ─┘

Only the training half teaches the tokenizer. Tokens of a corpus lie in files and are mapped (shards.py).
"""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torchane.data import batches, stories
from torchane.data.batches import Batch, Split, TrainBatches
from torchane.data.corpus import read_corpus, split_documents
from torchane.data.documents import Document
from torchane.data.shards import Shards, chunks, write_shard
from torchane.data.tokenizer import SAMPLE_CHARS, SLICE_CHARS, Tokenizer
from torchane.data.tokens import read_tokens
from torchane.errors import DataError

TRAIN_STORIES = 16_384  # as many windows as the default run sees, and more
VALID_STORIES = 192
_TOLD_BYTES = 1 << 20

Progress = Callable[[str, int, int], None]


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


@dataclass(frozen=True)
class Dataset:
    """Training and validation text as tokens.

    tokenizer: None where others made the tokens and nobody said with which; bytes are unknown then.
    floor_bits_per_byte is the exact entropy of the validation stories over their bytes, None where
    nobody knows it. at_boundaries: windows begin at documents and hold whole ones.
    """

    name: str
    tokenizer: Tokenizer | None
    train: Split
    valid: Split
    at_boundaries: bool
    floor_bits_per_byte: float | None
    notes: str

    @property
    def train_bytes(self) -> int | None:
        return self._bytes(self.train.stream)

    @property
    def valid_bytes(self) -> int | None:
        return self._bytes(self.valid.stream)

    @property
    def byte_counts(self) -> np.ndarray:
        """Bytes by token, int32; 0 for all where there is no tokenizer."""
        return np.zeros(1 << 16, np.int32) if self.tokenizer is None else self.tokenizer.byte_counts

    def _bytes(self, stream: np.ndarray | Shards) -> int | None:
        return None if self.tokenizer is None else sum(map(self.tokenizer.count_bytes, chunks(stream)))

    def train_batches(self, *, batch_size: int, seq_len: int, seed: int) -> TrainBatches:
        """batch(step) for every step of a run. Raises DataError if the text does not fill one batch."""
        return TrainBatches(
            self.train,
            self.byte_counts,
            batch_size=batch_size,
            seq_len=seq_len,
            seed=seed,
            at_boundaries=self.at_boundaries,
        )

    def valid_batches(self, *, batch_size: int, seq_len: int, max_windows: int | None = None) -> Iterator[Batch]:
        """The same batches at every call; each validation token is a counted target once, or only some windows are."""
        return batches.valid_batches(
            self.valid,
            self.byte_counts,
            batch_size=batch_size,
            seq_len=seq_len,
            at_boundaries=self.at_boundaries,
            max_windows=max_windows,
        )

    def describe(self) -> str:
        """What a user wants to know before the first step."""
        if self.tokenizer is None:
            sizes = (
                f"train {self.train.target_count:,} tokens, valid {self.valid.target_count:,} tokens; without their tokenizer "
                "(--tokenizer tokenizer.json) there are no bits per byte and no samples"
            )
        else:
            sizes = (
                f"train {self.train_bytes:,} bytes = {self.train.target_count:,} tokens, "
                f"valid {self.valid_bytes:,} bytes = {self.valid.target_count:,} tokens, "
                f"vocabulary {self.tokenizer.vocab_size:,}"
            )
        lines = [self.notes, sizes]
        if self.floor_bits_per_byte is not None:
            lines.append(f"no model can do better than {self.floor_bits_per_byte:.4f} bits per byte here")
        return "\n".join(lines)


def stories_dataset(
    vocab_size: int,
    seed: int = 0,
    *,
    train_stories: int = TRAIN_STORIES,
    valid_stories: int = VALID_STORIES,
    tokenizer: Tokenizer | None = None,
    progress: Progress = _silent,
) -> Dataset:
    """Our own stories. seed draws both halves, from different streams; the floor is that of the validation stories."""
    train = stories.write_stories(train_stories, seed, "train")
    valid = stories.write_stories(valid_stories, seed, "valid")
    return _dataset(
        "stories",
        train,
        valid,
        tokenizer,
        vocab_size,
        progress,
        floor=stories.floor_bits_per_byte(valid),
        notes=f"{train_stories:,} little stories to learn from, {valid_stories:,} others to be asked about (seed {seed})",
    )


def corpus_dataset(
    path: str | os.PathLike[str],
    vocab_size: int,
    *,
    tokenizer: Tokenizer | None = None,
    folder: Path | None = None,
    progress: Progress = _silent,
) -> Dataset:
    """The text below path, its tokens in files of `folder` without a name; the system's temporary one where none is said.
    Raises DataError if there is no text, or too little to hold any out.
    """
    folder = Path(tempfile.gettempdir()) if folder is None else folder
    progress(f"reading {os.fspath(path)}", 0, 1)
    corpus = read_corpus(path, folder)
    train, valid = split_documents(corpus.documents)
    if not train or not valid:
        raise DataError(
            f"{corpus.path} holds {corpus.size_bytes:,} bytes of text: too little to learn from one part and be "
            "tested on another. A few thousand bytes will run, a million will show something."
        )
    if tokenizer is None:
        progress("training the tokenizer", 0, 1)
        stride = max(1, -(-sum(document.size_bytes for document in train) // SAMPLE_CHARS))
        tokenizer = Tokenizer.train_on(_sample(train, stride), vocab_size)
    splits = [_encode(part, tokenizer, folder, progress) for part in (train, valid)]
    return Dataset(os.fspath(path), tokenizer, *splits, False, None, corpus.describe())


def tokens_dataset(files: list[Path], vocab_size: int, tokenizer: Tokenizer | None = None) -> Dataset:
    """Tokens that others made, in files of uint16 (tokens.py). Raises DataError."""
    train, valid, notes = read_tokens(files, vocab_size if tokenizer is None else tokenizer.vocab_size)
    nowhere = np.zeros(0, np.int64)
    return Dataset(os.fspath(files[0].parent), tokenizer, Split(train, nowhere), Split(valid, nowhere), False, None, notes)


def _sample(documents: Sequence[Document], stride: int) -> Iterator[str]:
    """Every so manieth slice of all documents, the first among them. Long documents are passed over without being read."""
    if stride == 1:
        yield from (piece for document in documents for piece in document.pieces() if piece is not None)
        return
    skipped = 0
    for document in documents:
        for number, begin in enumerate(range(0, document.size_bytes, SLICE_CHARS)):
            if (skipped + number) % stride == 0:
                yield from (piece for piece in document.part(begin, SLICE_CHARS).pieces() if piece is not None)
        skipped += -(-document.size_bytes // SLICE_CHARS)


def _encode(documents: Sequence[Document], tokenizer: Tokenizer, folder: Path, progress: Progress) -> Split:
    """END, then each document and END."""
    total = sum(document.size_bytes for document in documents)

    def pieces() -> Iterator[str | None]:
        done = told = 0
        for piece in itertools.chain.from_iterable(map(_with_end, documents)):
            yield piece
            done += 0 if piece is None else len(piece.encode())
            if done - told >= _TOLD_BYTES:
                progress("encoding", done, total)
                told = done
        progress("encoding", total, total)

    stream = write_shard(tokenizer.encode_stream(itertools.chain([None], pieces())), tokenizer.dtype, folder)
    return Split(stream, np.zeros(0, np.int64))


def _with_end(document: Document) -> Iterator[str | None]:
    last: str | None = ""
    for last in document.pieces():
        yield last
    if last is not None:  # a line of END at its very end has said so
        yield None


def _dataset(
    name: str,
    train: list[str],
    valid: list[str],
    tokenizer: Tokenizer | None,
    vocab_size: int,
    progress: Progress,
    floor: float | None,
    notes: str,
) -> Dataset:
    if tokenizer is None:
        progress("training the tokenizer", 0, 1)
        tokenizer = Tokenizer.train(train, vocab_size)

    def split(texts: list[str]) -> Split:
        encoded = tokenizer.encode_all(texts, lambda done, total: progress("encoding", done, total))
        return Split.from_documents(encoded, tokenizer.end_id)

    return Dataset(name, tokenizer, split(train), split(valid), floor is not None, floor, notes)
