"""Batches: which tokens, which targets, which bytes, and the same for the same seed and step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane.data.batches import IGNORE, Batch, Split, TrainBatches, Windows, valid_batches
from torchane.errors import DataError

END_ID = 0
BYTE_COUNTS = np.array([0, 1, 2, 3, 4], dtype=np.int32)
lengths = st.lists(st.integers(0, 12), min_size=1, max_size=12)


def make_split(document_lengths: list[int]) -> Split:
    rng = np.random.default_rng(len(document_lengths))
    documents = [rng.integers(1, 5, length).astype(np.uint16) for length in document_lengths]
    return Split.from_documents(documents, END_ID)


def train_batches(split: Split, **changes: object) -> TrainBatches:
    arguments = {"batch_size": 2, "seq_len": 4, "seed": 0, "at_boundaries": False} | changes
    return TrainBatches(split, BYTE_COUNTS, **arguments)  # type: ignore[arg-type]


def counted(batch: Batch) -> list[int]:
    return batch.targets[batch.targets != IGNORE].tolist()


def test_a_split_is_an_end_before_and_after_each_document() -> None:
    split = Split.from_documents([np.array([3, 4], np.uint16), np.array([2], np.uint16)], END_ID)
    assert split.stream.tolist() == [0, 3, 4, 0, 2, 0]
    assert split.boundaries.tolist() == [0, 3, 5]
    assert split.target_count == 5


@given(lengths, st.integers(1, 9), st.integers(1, 4), st.booleans())
@settings(deadline=None)
def test_validation_counts_every_token_once_with_its_bytes(
    document_lengths: list[int], seq_len: int, batch_size: int, at_boundaries: bool
) -> None:
    split = make_split(document_lengths)
    batches = list(
        valid_batches(split, BYTE_COUNTS, batch_size=batch_size, seq_len=seq_len, at_boundaries=at_boundaries)
    )
    assert [target for batch in batches for target in counted(batch)] == split.stream[1:].tolist()
    assert sum(batch.target_count for batch in batches) == split.target_count
    assert sum(batch.target_bytes for batch in batches) == BYTE_COUNTS[split.stream].sum()
    assert {tuple(batch.tokens.shape) for batch in batches} == {(batch_size, seq_len)}


@given(lengths, st.integers(1, 9), st.booleans())
@settings(deadline=None)
def test_a_counted_target_is_the_token_after_the_one_shown(
    document_lengths: list[int], seq_len: int, at_boundaries: bool
) -> None:
    split = make_split(document_lengths)
    windows = (Windows.at_boundaries if at_boundaries else Windows.side_by_side)(split, seq_len)
    batch = windows.take(split, np.arange(len(windows)), BYTE_COUNTS, fill=True)
    for row, start in enumerate(windows.starts):
        for column in range(seq_len):
            at = start + column
            target = batch.targets[row, column].item()
            assert target == (split.stream[at + 1] if at + 1 < len(split.stream) else IGNORE)
            if target != IGNORE:
                assert batch.tokens[row, column].item() == split.stream[at]


@given(lengths, st.integers(13, 40))
def test_windows_at_boundaries_hold_whole_documents(document_lengths: list[int], seq_len: int) -> None:
    split = make_split(document_lengths)
    windows = Windows.at_boundaries(split, seq_len)
    boundaries = set(split.boundaries.tolist())
    assert set(windows.starts.tolist()) <= boundaries
    assert set((windows.starts + windows.counts).tolist()) <= boundaries


def test_a_document_longer_than_a_window_goes_on_in_its_own_windows() -> None:
    windows = Windows.at_boundaries(make_split([9, 2]), 4)  # 10 and 3 targets, END included
    assert windows.starts.tolist() == [0, 4, 8, 10]
    assert windows.counts.tolist() == [4, 4, 2, 3]


@pytest.mark.parametrize("at_boundaries", [False, True])
def test_a_batch_depends_on_seed_and_step_alone(at_boundaries: bool) -> None:
    split = make_split([11] * 40)
    forwards = train_batches(split, at_boundaries=at_boundaries)
    backwards = train_batches(split, at_boundaries=at_boundaries)
    first = [forwards.batch(step).tokens.tolist() for step in range(80)]
    assert [backwards.batch(step).tokens.tolist() for step in reversed(range(80))] == first[::-1]
    other = train_batches(split, at_boundaries=at_boundaries, seed=1)
    assert [other.batch(step).tokens.tolist() for step in range(80)] != first


@pytest.mark.parametrize("at_boundaries", [False, True])
def test_an_epoch_visits_every_window_once_and_the_next_in_another_order(at_boundaries: bool) -> None:
    split = Split.from_documents([np.arange(1, 12, dtype=np.uint16) + 11 * i for i in range(40)], END_ID)
    counts = np.ones(1000, np.int32)
    batches = TrainBatches(split, counts, batch_size=1, seq_len=12, seed=0, at_boundaries=at_boundaries)
    size = batches.windows_per_epoch
    epochs = [[tuple(batches.batch(e * size + i).tokens[0].tolist()) for i in range(size)] for e in range(2)]
    assert all(len(set(epoch)) == size for epoch in epochs)
    assert epochs[0] != epochs[1]
    if at_boundaries:
        assert set(epochs[0]) == set(epochs[1])


def test_training_windows_of_stories_begin_at_boundaries() -> None:
    split = make_split([5, 9, 3, 8, 7, 6] * 5)
    batches = train_batches(split, seq_len=16, at_boundaries=True)
    assert all((batches.batch(step).tokens[:, 0] == END_ID).all() for step in range(40))


def test_offsets_differ_between_epochs_of_free_text() -> None:
    split = Split.from_documents([np.arange(1, 1000, dtype=np.uint16)], END_ID)
    batches = TrainBatches(split, np.ones(1000, np.int32), batch_size=1, seq_len=10, seed=0, at_boundaries=False)
    remainders = {int(batches.batch(epoch * batches.windows_per_epoch).tokens[0, 0]) % 10 for epoch in range(8)}
    assert len(remainders) > 1


def test_the_bytes_of_a_batch_are_those_of_its_targets() -> None:
    batch = train_batches(make_split([11] * 8), at_boundaries=True, seq_len=12).batch(0)
    assert batch.target_bytes == BYTE_COUNTS[counted(batch)].sum()
    assert batch.target_count == len(counted(batch))


def test_text_that_does_not_fill_one_batch_is_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match="has 9 tokens, and one batch of 4 x 4 needs 17"):
        train_batches(make_split([3, 3]), batch_size=4)
    train_batches(make_split([3, 3]))  # 2 x 4 + 1 tokens are just enough


def test_part_of_the_validation_is_spread_over_it() -> None:
    split = make_split([7] * 40)
    every = list(valid_batches(split, BYTE_COUNTS, batch_size=1, seq_len=8, at_boundaries=True))
    some = list(valid_batches(split, BYTE_COUNTS, batch_size=1, seq_len=8, at_boundaries=True, max_windows=4))
    assert [batch.tokens.tolist() for batch in some] == [every[i].tokens.tolist() for i in (0, 10, 20, 30)]
