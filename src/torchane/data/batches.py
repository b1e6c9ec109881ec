"""From a stream of tokens to the batches of a step: the same batch for the same seed and step, always.

    stream   END once upon . END a fox . END the owl ... END
    window   ^───── seq_len ─────^                                tokens  = stream[i : i + S]
              ^───── seq_len ─────^                               targets = stream[i+1 : i+S+1]

Each document is followed by END, and the stream begins with one, so that a document's first token is
predicted too. A window of stories begins at a story's boundary and takes the next stories whole as
long as they fit; windows of free text lie side by side. Validation counts every token exactly once:
what a window shows beyond its own share is masked with IGNORE.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from torchane.data.shards import Shards
from torchane.errors import DataError

IGNORE = -100  # torch.nn.functional.cross_entropy's ignore_index


@dataclass(frozen=True)
class Batch:
    """tokens and targets are int64 (B, S); a target of IGNORE counts nothing. positions, int64 (B, S): of rows that hold several examples, each
    from 0 on; None: a row is one text.

    target_bytes is the number of UTF-8 bytes that the counted targets stand for:
    bits per byte = sum of the targets' losses in nats / ln 2 / target_bytes.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    target_count: int
    target_bytes: int
    positions: torch.Tensor | None = None

    @property
    def more(self) -> tuple[torch.Tensor, ...]:
        """What the model is called with after tokens."""
        return () if self.positions is None else (self.positions,)


@dataclass(frozen=True)
class Split:
    """Documents as one stream of tokens: END, then each document and END.

    stream is uint16 or uint32 (N,), perhaps in mapped files; boundaries int64 (documents + 1,): where the END before each
    document stands, and the last END. It is empty for free text, whose windows begin anywhere.
    """

    stream: np.ndarray | Shards
    boundaries: np.ndarray

    @classmethod
    def from_documents(cls, documents: Sequence[np.ndarray], end_id: int) -> "Split":
        end = np.array([end_id], dtype=documents[0].dtype if documents else np.uint16)
        stream = np.concatenate([end, *(part for document in documents for part in (document, end))])
        lengths = np.array([len(document) + 1 for document in documents], dtype=np.int64)
        return cls(stream, np.concatenate([[0], np.cumsum(lengths)]))

    @property
    def target_count(self) -> int:
        """How many tokens there are to predict: all but the first END."""
        return len(self.stream) - 1


@dataclass(frozen=True)
class Windows:
    """Where windows begin in a stream, and how many of its targets each must count.

    starts and counts are int64 (W,), 1 <= counts <= seq_len; the counted targets of all windows
    together are every target of the split, once.
    """

    starts: np.ndarray
    counts: np.ndarray
    seq_len: int

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def side_by_side(cls, split: Split, seq_len: int) -> "Windows":
        """Windows of free text: one after another from the stream's start."""
        starts = np.arange(0, split.target_count, seq_len, dtype=np.int64)
        return cls(starts, np.minimum(seq_len, split.target_count - starts), seq_len)

    @classmethod
    def at_boundaries(cls, split: Split, seq_len: int) -> "Windows":
        """Windows that begin where a document does and hold whole documents.

        A document longer than a window goes on in windows of its own; only those begin inside it.
        """
        starts, counts = [], []
        bounds = split.boundaries.tolist()
        index = 0
        while index < len(bounds) - 1:
            start = bounds[index]
            last = index + 1
            while last + 1 < len(bounds) and bounds[last + 1] - start <= seq_len:
                last += 1
            for at in range(start, bounds[last], seq_len):
                starts.append(at)
                counts.append(min(seq_len, bounds[last] - at))
            index = last
        return cls(np.array(starts, dtype=np.int64), np.array(counts, dtype=np.int64), seq_len)

    def take(self, split: Split, rows: np.ndarray, byte_counts: np.ndarray, *, fill: bool) -> Batch:
        """The windows in rows as a batch. fill: count the targets beyond a window's share too, as far as text goes.

        Positions beyond the stream repeat its last END and are masked.
        """
        at = self.starts[rows][:, None] + np.arange(self.seq_len + 1)
        text = split.stream[np.minimum(at, len(split.stream) - 1)].astype(np.int64)
        tokens, targets = text[:, :-1], text[:, 1:].copy()
        share = split.target_count - self.starts[rows] if fill else self.counts[rows]
        targets[np.arange(self.seq_len) >= share[:, None]] = IGNORE
        return _batch(torch.from_numpy(tokens.copy()), torch.from_numpy(targets), byte_counts)


class TrainBatches:
    """The training batches of a run: batch(step) depends on nothing but the arguments and the step.

    Each epoch visits every window once, in an order drawn from (seed, epoch). Resuming is asking for
    the next step. Windows of free text are shifted by a different offset in every epoch.
    """

    def __init__(
        self, split: Split, byte_counts: np.ndarray, *, batch_size: int, seq_len: int, seed: int, at_boundaries: bool
    ):
        """Raises DataError if the text does not fill one batch."""
        needed = batch_size * seq_len + 1
        if len(split.stream) < needed:
            raise DataError(
                f"The training text has {len(split.stream):,} tokens, and one batch of {batch_size} x {seq_len} needs "
                f"{needed:,}. Give more text, or make --batch-size or --seq-len smaller."
            )
        self._split = split
        self._byte_counts = byte_counts
        self._batch_size = batch_size
        self._seq_len = seq_len
        self._seed = seed
        self._at_boundaries = at_boundaries
        if at_boundaries:
            self._windows = Windows.at_boundaries(split, seq_len)
            self.windows_per_epoch = len(self._windows)
        else:
            # One fewer than fit, so that there is room for an offset.
            self.windows_per_epoch = max(1, split.target_count // seq_len - 1)
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        first = step * self._batch_size
        starts = np.array([self._start(first + row) for row in range(self._batch_size)], dtype=np.int64)
        windows = Windows(starts, np.full(len(starts), self._seq_len), self._seq_len)
        return windows.take(self._split, np.arange(len(starts)), self._byte_counts, fill=True)

    def _start(self, index: int) -> int:
        """Where the index-th window of the run begins."""
        epoch, row = divmod(index, self.windows_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            self._order = rng.permutation(self.windows_per_epoch)
            if self._at_boundaries:
                self._starts = self._windows.starts
            else:
                spare = self._split.target_count - self.windows_per_epoch * self._seq_len
                offset = int(rng.integers(0, min(spare, self._seq_len) + 1))
                self._starts = offset + self._seq_len * np.arange(self.windows_per_epoch)
            self._epoch = epoch
        return int(self._starts[self._order[row]])


def valid_batches(
    split: Split,
    byte_counts: np.ndarray,
    *,
    batch_size: int,
    seq_len: int,
    at_boundaries: bool,
    max_windows: int | None = None,
) -> Iterator[Batch]:
    """The fixed validation windows in order; each target once, or those of max_windows windows spread evenly.

    The last batch is filled up to batch_size with rows that count nothing, so that shapes never change.
    """
    make = Windows.at_boundaries if at_boundaries else Windows.side_by_side
    windows = make(split, seq_len)
    rows = np.arange(len(windows))
    if max_windows is not None and max_windows < len(rows):
        rows = rows[np.arange(max_windows) * len(rows) // max_windows]
    for at in range(0, len(rows), batch_size):
        some = rows[at : at + batch_size]
        batch = windows.take(split, some, byte_counts, fill=False)
        missing = batch_size - len(some)
        if missing:
            padding = batch.tokens[-1:].expand(missing, -1)
            tokens = torch.cat([batch.tokens, padding])
            targets = torch.cat([batch.targets, torch.full_like(padding, IGNORE)])
            batch = _batch(tokens, targets, byte_counts)
        yield batch


def _batch(tokens: torch.Tensor, targets: torch.Tensor, byte_counts: np.ndarray) -> Batch:
    counted = targets[targets != IGNORE].numpy()
    return Batch(tokens, targets, len(counted), int(byte_counts[counted].sum()))
