"""Several examples in one row of a batch, each as if it were alone.

    examples   200  61  60  31  12        rows of 256     tokens      200 .........  31 ...  12 ..  padding
                                                          positions   0 1 2 ... 199  0 ...   0 ...  0 ...
                                                          targets     the next token of the same example, none for its last
Positions begin anew with each example. transformers' masks read from them where one begins: attention looks at no other, and a sliding window is
counted within an example. What a model does with them is looked at before it is trained (`require_apart`). An epoch packs all its examples anew, ties in
length in an order drawn from (seed, epoch); rows that do not fill a batch are left out of that epoch, others in the next.
Best fit decreasing: Johnson 1973, "Near-optimal bin packing algorithms".
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchane.capture.sizes.buckets import STEP
from torchane.data.batches import IGNORE, Batch
from torchane.errors import DataError, UsageError
from torchane.finetune.batches import fill_row
from torchane.finetune.data import Example

#: Tokens of the two examples that `require_apart` looks at, and the window of a model that has one, so that they are longer than it.
_PROBES, _WINDOW = (5, 11), 4
_WINDOWS = ("sliding_window", "attention_chunk_size")
#: Of the distance that another example in the row makes where nothing parts the two.
_MOST_LEAKED = 0.1


def row_length(longest: int, positions: int) -> int:
    """Of a row, in tokens, where examples have at most `longest` and the model at most `positions`. The last token of an example is no input."""
    return min(-(-(longest - 1) // STEP) * STEP, positions)


def pack(needed: Sequence[int], length: int) -> list[list[int]]:
    """The indices of what lies in each row of `length`. needed: tokens of each, 1 to length; the largest ones first, for few rows."""
    rows: list[list[int]] = []
    spaces: list[int] = []  # those that some row has left, sorted
    having: dict[int, list[int]] = {}
    for index, size in enumerate(needed):
        at = bisect_left(spaces, size)
        if at == len(spaces):
            row, space = len(rows), length
            rows.append([])
        else:
            space = spaces[at]
            row = having[space].pop()
            if not having[space]:
                del having[space], spaces[at]
        rows[row].append(index)
        left = space - size
        if left:
            if left not in having:
                having[left] = []
                insort(spaces, left)
            having[left].append(row)
    return rows


class PackedBatches:
    """Batches of a run: `batch(iteration)`, counted from 0, depends on nothing but the arguments. length: of a row. Raises DataError where the examples
    do not fill the rows of one batch."""

    def __init__(self, examples: Sequence[Example], *, batch_size: int, length: int, seed: int) -> None:
        self.examples, self.batch_size, self.length, self.seed = examples, batch_size, length, seed
        self._needed = np.array([len(example.ids) - 1 for example in examples], np.int64)
        self.row_count = len(pack(np.sort(self._needed)[::-1].tolist(), length))  # of every epoch: the order of ties changes nothing
        if self.row_count < batch_size:
            raise DataError(
                f"--packing: {len(examples):,} examples fill {self.row_count} rows of {length:,} tokens, and a batch has {batch_size}. Give a smaller --batch-size "
                "or --max-seq-length, or leave --packing out."
            )
        self.batches_per_epoch = self.row_count // batch_size
        self._epoch = -1
        self._rows: list[list[int]] = []

    @property
    def padding_share(self) -> float:
        """Of the tokens of an epoch's rows, those that are padding."""
        return 1 - float(self._needed.sum()) / (self.row_count * self.length)

    def batch(self, iteration: int) -> Batch:
        """tokens, targets and positions int64 (batch_size, length)."""
        epoch, index = divmod(iteration, self.batches_per_epoch)
        if epoch != self._epoch:
            self._rows, self._epoch = self._order(epoch), epoch
        rows = self._rows[index * self.batch_size : (index + 1) * self.batch_size]
        return packed([[self.examples[i] for i in row] for row in rows], self.length)

    def _order(self, epoch: int) -> list[list[int]]:
        """The examples of every row of an epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        drawn = rng.permutation(len(self.examples))
        drawn = drawn[np.argsort(-self._needed[drawn], kind="stable")]
        rows = pack(self._needed[drawn].tolist(), self.length)
        return [[int(drawn[i]) for i in rows[row]] for row in rng.permutation(len(rows))]


def packed(rows: Sequence[Sequence[Example]], length: int) -> Batch:
    """A batch of these rows. What is behind the last example of one is an example of padding, whose targets are IGNORE."""
    tokens, positions = (np.zeros((len(rows), length), np.int64) for _ in range(2))
    targets = np.full((len(rows), length), IGNORE, np.int64)
    for row, examples in enumerate(rows):
        at = 0
        for example in examples:
            count = len(example.ids) - 1
            fill_row(tokens[row, at : at + count], targets[row, at : at + count], example)
            positions[row, at : at + count] = np.arange(count)
            at += count
        positions[row, at:] = np.arange(length - at)
    return Batch(*map(torch.from_numpy, (tokens, targets)), int((targets != IGNORE).sum()), 0, torch.from_numpy(positions))


@torch.no_grad()
def require_apart(model: Any) -> None:
    """Looks at what a causal model of transformers makes of an example behind another one in its row. Raises UsageError where that is not what it makes of it alone:
    a state that goes on (Mamba), positions that are not taken, a mask of the model's own."""
    config = model.config.get_text_config()
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, config.vocab_size, (1, count), generator=draw) for count in _PROBES)
    row = torch.cat([first, second], 1)
    positions = torch.cat([torch.arange(count)[None] for count in _PROBES], 1)
    with _short_windows(config):
        alone = _logits(model, second)
        try:
            apart = _logits(model, row, position_ids=positions)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"--packing: {type(model).__name__} takes no positions: {str(error).strip()[:200]}. Leave --packing out.") from error
        together = _logits(model, row)
    size, count = float(alone.norm()), alone.shape[1]
    distances = [float((each[:, -count:] - alone).norm()) / size for each in (apart, together)]
    if not distances[0] <= _MOST_LEAKED * distances[1]:
        raise UsageError(
            f"--packing: {type(model).__name__} does not keep the examples of a row apart: behind another example the logits of one are {100 * distances[0]:.2g} % off those that "
            f"it has alone ({100 * distances[1]:.2g} % where nothing parts them). Leave --packing out: each example is padded to a row of its own then."
        )


def _logits(model: nn.Module, tokens: Tensor, **more: Tensor) -> Tensor:
    found: Tensor = model(input_ids=tokens, use_cache=False, **more).logits
    return found.float()


@contextmanager
def _short_windows(config: Any) -> Iterator[None]:
    """Of a model that has windows, which its masks read from its config in each call."""
    before = {name: getattr(config, name) for name in _WINDOWS if isinstance(getattr(config, name, None), int)}
    try:
        for name in before:
            setattr(config, name, _WINDOW)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
