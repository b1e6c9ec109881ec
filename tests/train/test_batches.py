"""A dataset as the loop sees it."""

import dataclasses

import pytest
import torch
from small_run import SETTINGS

from torchane.data.dataset import stories_dataset
from torchane.train.batches import DatasetBatches, digest


@pytest.fixture(scope="module")
def dataset():
    return stories_dataset(300, train_stories=60, valid_stories=12)


def test_every_batch_has_the_shape_of_merged_micro_steps(dataset):
    batches = DatasetBatches(dataset, dataclasses.replace(SETTINGS, batch_size=3, grad_accum_steps=2, seq_len=24))
    shapes = {batch.tokens.shape for batch in [batches.train(0), batches.train(7), *batches.valid()]}
    assert shapes == {torch.Size([6, 24])} and batches.floor == dataset.floor_bits_per_byte


def test_batches_follow_from_seed_and_step(dataset):
    first, again = (DatasetBatches(dataset, SETTINGS) for _ in range(2))
    other = DatasetBatches(dataset, dataclasses.replace(SETTINGS, seed=1))
    again.train(3)
    assert torch.equal(first.train(5).tokens, again.train(5).tokens)
    assert not torch.equal(first.train(5).tokens, other.train(5).tokens)


def test_validation_takes_so_many_windows(dataset):
    batches = DatasetBatches(dataset, dataclasses.replace(SETTINGS, batch_size=2, eval_windows=6))
    assert sum(1 for _ in batches.valid()) == 3


def test_the_digest_changes_with_the_text(dataset):
    other = stories_dataset(300, seed=1, train_stories=60, valid_stories=12, tokenizer=dataset.tokenizer)
    same = stories_dataset(300, train_stories=60, valid_stories=12)
    assert digest(dataset) == digest(same) != digest(other)
