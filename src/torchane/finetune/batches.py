"""From examples of many lengths to batches of a few shapes, the same ones for the same seed and iteration.

    lengths  12 30 31 60 | 61 64 70 200 | 201 220 ...     sorted, batch_size side by side
    padded to     64     |     224      |    224          at most MOST_LENGTHS lengths, so that few programs are compiled

Here all lengths are known, so that the best of the multiples of STEP are taken; where they come one by one, sizes grow by steps of it
(capture/sizes/buckets.py). mlx-lm pads to it as well.

Padding comes after an example's tokens, where a causal model does not look, and counts nothing. An epoch visits its batches in an
order drawn from (seed, epoch); examples that do not fill a batch are left out of that epoch, others in the next.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from torchane.capture.sizes.buckets import STEP
from torchane.data.batches import IGNORE, Batch
from torchane.errors import DataError
from torchane.finetune.data import Example

#: Shapes cost a compilation each, padding costs time in every step.
MOST_LENGTHS = 4


def bucket_lengths(examples: Sequence[Example], positions: int, most: int = MOST_LENGTHS) -> tuple[int, ...]:
    """At most `most` lengths, multiples of STEP, that all inputs fit into with the least padding in all. positions: no length is beyond."""
    needed = np.array([min(-(-(len(example.ids) - 1) // STEP) * STEP, positions) for example in examples], np.int64)
    lengths, counts = np.unique(needed, return_counts=True)
    # best[k][j]: least padded tokens of the first j lengths in k buckets, the last of which is lengths[j - 1]
    totals = np.concatenate([[0], np.cumsum(counts)])
    best = [np.where(np.arange(len(lengths) + 1) == 0, 0.0, np.inf)]
    cuts: list[list[int]] = []
    for _ in range(min(most, len(lengths))):
        last, row, cut = best[-1], [0.0], [0]
        for j in range(1, len(lengths) + 1):
            costs = last[:j] + lengths[j - 1] * (totals[j] - totals[:j])
            cut.append(int(np.argmin(costs)))
            row.append(float(costs[cut[-1]]))
        best.append(np.array(row))
        cuts.append(cut)
    chosen, j = [], len(lengths)
    for cut in reversed(cuts):
        if j > 0:
            chosen.append(int(lengths[j - 1]))
            j = cut[j]
    return tuple(sorted(chosen))


def padding_share(examples: Sequence[Example], lengths: Sequence[int]) -> float:
    """Of the tokens of these examples' rows, those that are padding."""
    needed = np.array([len(example.ids) - 1 for example in examples], np.int64)
    rows = np.asarray(lengths)[np.searchsorted(lengths, needed)]
    return 1 - float(needed.sum()) / float(rows.sum())


class Batches(Protocol):
    """Of a run: the same batch for the same iteration, counted from 0."""

    def batch(self, iteration: int) -> Batch: ...


class TrainBatches:
    """Batches of a run: `batch(iteration)`, counted from 0, depends on nothing but the arguments. Raises DataError for fewer examples than
    fill a batch."""

    def __init__(self, examples: Sequence[Example], *, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        if len(examples) < batch_size:
            raise DataError(f"There are {len(examples):,} examples to train on, and a batch has {batch_size}. Give more, or a smaller --batch-size.")
        self.examples, self.batch_size, self.lengths, self.seed = examples, batch_size, lengths, seed
        self.batches_per_epoch = len(examples) // batch_size
        self._sizes = np.array([len(example.ids) for example in examples])
        self._epoch = -1
        self._rows = np.zeros((0, batch_size), np.int64)

    def batch(self, iteration: int) -> Batch:
        epoch, index = divmod(iteration, self.batches_per_epoch)
        if epoch != self._epoch:
            self._rows, self._epoch = self._order(epoch), epoch
        return pad([self.examples[row] for row in self._rows[index]], self.batch_size, self.lengths)

    def _order(self, epoch: int) -> np.ndarray:
        """The rows of every batch of an epoch: int64 (batches, batch_size)."""
        rng = np.random.default_rng([self.seed, epoch])
        drawn = rng.permutation(len(self.examples))[: self.batches_per_epoch * self.batch_size]
        by_length = drawn[np.argsort(self._sizes[drawn], kind="stable")].reshape(-1, self.batch_size)
        return by_length[rng.permutation(len(by_length))]


def fixed_batches(examples: Sequence[Example], *, batch_size: int, lengths: Sequence[int], most: int) -> Iterator[Batch]:
    """Batches that count every example once, the shortest first; at most `most` of them, spread evenly, or all where it is -1. The last
    one is filled up with rows that count nothing."""
    order = sorted(range(len(examples)), key=lambda row: len(examples[row].ids))
    starts = list(range(0, len(order), batch_size))
    if most != -1 and most < len(starts):
        starts = [starts[i * len(starts) // most] for i in range(most)]
    for at in starts:
        yield pad([examples[row] for row in order[at : at + batch_size]], batch_size, lengths)


def pad(examples: Sequence[Example], batch_size: int, lengths: Sequence[int]) -> Batch:
    """tokens and targets int64 (batch_size, S), S the least of `lengths` that holds them all; a target of IGNORE counts nothing."""
    longest = max(len(example.ids) for example in examples) - 1
    size = next(length for length in lengths if length >= longest)
    tokens = np.zeros((batch_size, size), np.int64)
    targets = np.full((batch_size, size), IGNORE, np.int64)
    for row, example in enumerate(examples):
        count = len(example.ids) - 1
        fill_row(tokens[row, :count], targets[row, :count], example)
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), int((targets != IGNORE).sum()), 0)


def fill_row(tokens: np.ndarray, targets: np.ndarray, example: Example) -> None:
    """Writes an example of L tokens into int64 (L - 1,) each; a target that is not learned stays as it is."""
    first = max(example.offset - 1, 0)
    tokens[:] = example.ids[:-1]
    targets[first:] = example.ids[1 + first :]
