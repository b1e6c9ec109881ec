"""What a run trains on: a tokenizer and two streams of tokens, from our stories or the user's text.

    stories_dataset(seed, vocab_size)  ─┐
    corpus_dataset(path, vocab_size)   ─┴──► Dataset ──► train_batches(...), valid_batches(...)

Only the training half teaches the tokenizer.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torchane.data import batches, stories
from torchane.data.batches import Batch, Split, TrainBatches
from torchane.data.corpus import read_corpus, split_documents
from torchane.data.tokenizer import Tokenizer
from torchane.errors import DataError

TRAIN_STORIES = 16_384  # as many windows as the default run sees, and more
VALID_STORIES = 192

Progress = Callable[[str, int, int], None]


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


@dataclass(frozen=True)
class Dataset:
    """Training and validation text as tokens.

    floor_bits_per_byte is the exact entropy of the validation stories over their bytes, None where
    nobody knows it. at_boundaries: windows begin at documents and hold whole ones.
    """

    name: str
    tokenizer: Tokenizer
    train: Split
    valid: Split
    at_boundaries: bool
    floor_bits_per_byte: float | None
    notes: str

    @property
    def train_bytes(self) -> int:
        return self.tokenizer.count_bytes(self.train.stream)

    @property
    def valid_bytes(self) -> int:
        return self.tokenizer.count_bytes(self.valid.stream)

    def train_batches(self, *, batch_size: int, seq_len: int, seed: int) -> TrainBatches:
        """batch(step) for every step of a run. Raises DataError if the text does not fill one batch."""
        return TrainBatches(
            self.train,
            self.tokenizer.byte_counts,
            batch_size=batch_size,
            seq_len=seq_len,
            seed=seed,
            at_boundaries=self.at_boundaries,
        )

    def valid_batches(self, *, batch_size: int, seq_len: int, max_windows: int | None = None) -> Iterator[Batch]:
        """The same batches at every call; each validation token is a counted target once, or only some windows are."""
        return batches.valid_batches(
            self.valid,
            self.tokenizer.byte_counts,
            batch_size=batch_size,
            seq_len=seq_len,
            at_boundaries=self.at_boundaries,
            max_windows=max_windows,
        )

    def describe(self) -> str:
        """What a user wants to know before the first step."""
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
    path: str | os.PathLike[str], vocab_size: int, *, tokenizer: Tokenizer | None = None, progress: Progress = _silent
) -> Dataset:
    """The text below path. Raises DataError if there is none, or too little to hold any out."""
    progress(f"reading {os.fspath(path)}", 0, 1)
    corpus = read_corpus(path)
    train, valid = split_documents(corpus.documents)
    if not train or not valid:
        raise DataError(
            f"{corpus.path} holds {corpus.size_bytes:,} bytes of text: too little to learn from one part and be "
            "tested on another. A few thousand bytes will run, a million will show something."
        )
    return _dataset(os.fspath(path), train, valid, tokenizer, vocab_size, progress, floor=None, notes=corpus.describe())


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
