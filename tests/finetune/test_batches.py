"""Batches: few lengths with the least padding, every token that counts once, the same batch for the same seed and iteration."""

import itertools

import numpy as np
import pytest
import tiny
import torch

from torchane.capture.compiled import COMPILED
from torchane.data.batches import IGNORE
from torchane.errors import DataError
from torchane.finetune.batches import MOST_LENGTHS, TrainBatches, bucket_lengths, fixed_batches, pad
from torchane.finetune.data import Example
from torchane.finetune.loop import Logits, accumulate
from torchane.finetune.packing import PackedBatches
from torchane.train.engine import EngineModel

RNG = np.random.default_rng(0)
EXAMPLES = [Example(np.arange(1, n + 1, dtype=np.int32), 0) for n in RNG.integers(2, 400, 53)]


def padding(examples, lengths):
    return sum(min(length for length in lengths if length >= len(example.ids) - 1) for example in examples)


def test_bucket_lengths_have_the_least_padding_that_so_many_can_have():
    found = bucket_lengths(EXAMPLES, 512, most=3)
    every = [min(-(-(len(example.ids) - 1) // 32) * 32, 512) for example in EXAMPLES]
    best = min(padding(EXAMPLES, (*some, max(every))) for some in itertools.combinations(sorted(set(every)), 2))
    assert len(found) <= 3 and max(found) == max(every) and padding(EXAMPLES, found) == best


def test_no_length_is_beyond_the_models_positions():
    assert bucket_lengths([Example(np.zeros(50, np.int32))], 49) == (49,)
    assert bucket_lengths([Example(np.zeros(2, np.int32))], 512) == (32,)


def test_a_batch_shows_each_token_its_next_one_and_padding_counts_nothing():
    batch = pad([Example(np.array([5, 6, 7], np.int32)), Example(np.array([1, 2, 3, 4], np.int32), 2)], 3, (4, 8))
    assert batch.tokens.tolist() == [[5, 6, 0, 0], [1, 2, 3, 0], [0, 0, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, IGNORE, IGNORE], [IGNORE, 3, 4, IGNORE], [IGNORE] * 4]
    assert batch.target_count == 4


def test_an_epoch_shows_every_example_once_and_leftovers_change():
    batches = TrainBatches(EXAMPLES, batch_size=4, lengths=(128, 416), seed=1)
    seen = []
    for epoch in range(2):
        rows = batches._order(epoch)
        assert rows.shape == (13, 4) and len(set(rows.ravel())) == 52
        seen.append(set(range(53)) - set(rows.ravel().tolist()))
    assert seen[0] != seen[1]


def test_a_batch_is_of_neighbours_in_length_and_follows_from_seed_and_iteration():
    batches, again, other = (TrainBatches(EXAMPLES, batch_size=4, lengths=(416,), seed=seed) for seed in (1, 1, 2))
    rows = batches._order(0)
    spans = sorted((min(len(EXAMPLES[i].ids) for i in row), max(len(EXAMPLES[i].ids) for i in row)) for row in rows)
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))
    first = batches.batch(0)
    batches.batch(30)
    for each in (batches.batch(0), again.batch(0)):
        assert torch.equal(each.tokens, first.tokens)
    assert not all(torch.equal(batches.batch(i).tokens, other.batch(i).tokens) for i in range(13))


def test_validation_counts_every_token_once_in_batches_of_one_size():
    batches = list(fixed_batches(EXAMPLES, batch_size=4, lengths=(128, 416), most=-1))
    assert sum(batch.target_count for batch in batches) == sum(len(example.ids) - 1 for example in EXAMPLES)
    assert {batch.tokens.shape[0] for batch in batches} == {4} and len(batches) == 14
    assert len(list(fixed_batches(EXAMPLES, batch_size=4, lengths=(128, 416), most=5))) == 5


@pytest.mark.long
def test_an_epoch_compiles_a_graph_for_each_length():
    """Of some fifty lengths; packed, one."""
    examples = [Example(example.ids % tiny.VOCAB) for example in EXAMPLES]
    lengths = bucket_lengths(examples, 512)
    padded, packed = TrainBatches(examples, batch_size=4, lengths=lengths, seed=0), PackedBatches(examples, batch_size=4, length=416, seed=0)
    for batches, count in ((padded, len(lengths)), (packed, 1)):
        model = EngineModel(Logits(tiny.model("llama")), "twin")
        before = len(COMPILED)
        for iteration in range(batches.batches_per_epoch + 1):
            accumulate(model, batches.batch(iteration), 1)
        assert len(COMPILED) - before == count <= MOST_LENGTHS


def test_fewer_examples_than_a_batch_are_refused():
    with pytest.raises(DataError, match="There are 53 examples to train on, and a batch has 64"):
        TrainBatches(EXAMPLES, batch_size=64, lengths=(416,), seed=0)
