"""A dataset as the training loop asks for it: batches of one shape, fixed by the settings of the run."""

import hashlib
from collections.abc import Iterator

from torchane.data.batches import Batch
from torchane.data.dataset import Dataset
from torchane.data.shards import chunks
from torchane.train.settings import TrainSettings


class DatasetBatches:
    """Training batches by step, counted from 0, and the validation batches. All are (windows, seq_len), since a
    program has one shape. Raises DataError if the text does not fill one batch.
    """

    def __init__(self, dataset: Dataset, settings: TrainSettings) -> None:
        self.floor = dataset.floor_bits_per_byte
        self._dataset = dataset
        self._settings = settings
        self._train = dataset.train_batches(batch_size=settings.windows, seq_len=settings.seq_len, seed=settings.seed)

    def train(self, step: int) -> Batch:
        return self._train.batch(step)

    def valid(self) -> Iterator[Batch]:
        return self._dataset.valid_batches(
            batch_size=self._settings.windows,
            seq_len=self._settings.seq_len,
            max_windows=self._settings.eval_windows,
        )


def digest(dataset: Dataset) -> str:
    """SHA-256 of all tokens, by which a resumed run knows its text again."""
    total = hashlib.sha256()
    for split in (dataset.train, dataset.valid):
        total.update(f"{split.stream.dtype} {len(split.stream)} {len(split.boundaries)}\n".encode())
        for part in chunks(split.stream):
            total.update(part.data)
        total.update(split.boundaries.data)
    return total.hexdigest()
