"""Datasets: what a run trains on, from our stories or from anyone's text."""

import math
from pathlib import Path

import numpy as np
import pytest

from torchane.data import stories
from torchane.data.batches import IGNORE
from torchane.data.dataset import Dataset, corpus_dataset, stories_dataset
from torchane.data.tokenizer import Tokenizer
from torchane.errors import DataError
from torchane.models.presets import preset

TINY = preset("tiny")


def small_stories(seed: int = 0) -> Dataset:
    return stories_dataset(600, seed, train_stories=300, valid_stories=20)


@pytest.fixture(scope="module")
def default() -> Dataset:
    return stories_dataset(TINY.config.vocab_size)


def texts(dataset: Dataset, tokens: np.ndarray) -> list[str]:
    ends = np.flatnonzero(tokens == dataset.tokenizer.end_id)
    return [dataset.tokenizer.decode(part.tolist()) for part in np.split(tokens, ends)][1:-1]


def test_the_halves_of_the_stories_are_the_streams_of_the_seed() -> None:
    dataset = small_stories(3)
    assert texts(dataset, dataset.train.stream) == stories.write_stories(300, 3, "train")
    assert texts(dataset, dataset.valid.stream) == stories.write_stories(20, 3, "valid")


def test_the_floor_is_that_of_the_validation_stories() -> None:
    dataset = small_stories()
    assert dataset.floor_bits_per_byte == stories.floor_bits_per_byte(stories.write_stories(20, 0, "valid"))


def test_the_same_seed_gives_the_same_dataset() -> None:
    one, two, other = small_stories(), small_stories(), small_stories(1)
    assert np.array_equal(one.train.stream, two.train.stream)
    assert one.tokenizer.to_text() == two.tokenizer.to_text()
    assert not np.array_equal(one.train.stream[:100], other.train.stream[:100])


def test_a_given_tokenizer_is_used() -> None:
    tokenizer = Tokenizer.train(["anything else"], 300)
    dataset = stories_dataset(5000, train_stories=10, valid_stories=5, tokenizer=tokenizer)
    assert dataset.tokenizer is tokenizer


def test_the_default_windows_begin_at_stories_and_hold_whole_ones(default: Dataset) -> None:
    seq_len, batch_size = TINY.training.seq_len, TINY.training.batch_size
    end = default.tokenizer.end_id
    batches = default.train_batches(batch_size=batch_size, seq_len=seq_len, seed=0)
    for step in range(50):
        batch = batches.batch(step)
        assert (batch.tokens[:, 0] == end).all()
        assert (batch.targets == end).any(dim=1).all(), "a window without a whole story"
    for batch in default.valid_batches(batch_size=batch_size, seq_len=seq_len):
        for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
            counted = targets[targets != IGNORE]
            assert tokens[0] == end
            assert len(counted) == 0 or counted[-1] == end


def test_bits_per_byte_of_the_default_validation_can_be_summed_from_its_batches(default: Dataset) -> None:
    """A model that spends 1/8 bit on every byte and nothing on ends spends 1/8 bit per byte in the sum."""
    nats, size_bytes = 0.0, 0
    for batch in default.valid_batches(batch_size=16, seq_len=64):
        counted = batch.targets[batch.targets != IGNORE].numpy()
        nats += float(default.tokenizer.byte_counts[counted].sum()) * math.log(2) / 8
        size_bytes += batch.target_bytes
    assert nats / math.log(2) / size_bytes == pytest.approx(1 / 8)
    assert size_bytes == default.valid_bytes


def test_the_default_run_sees_hardly_a_story_twice(default: Dataset) -> None:
    training = TINY.training
    windows = default.train_batches(batch_size=training.batch_size, seq_len=training.seq_len, seed=0).windows_per_epoch
    assert training.steps * training.batch_size <= 1.5 * windows


def test_text_has_no_floor_and_windows_anywhere(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one line and another\n" * 500)
    dataset = corpus_dataset(tmp_path, 300)
    assert dataset.floor_bits_per_byte is None
    assert not dataset.at_boundaries
    assert dataset.train_bytes + dataset.valid_bytes == 21 * 500


def test_the_description_tells_bytes_tokens_and_floor() -> None:
    told = small_stories().describe()
    assert "300 little stories to learn from, 20 others to be asked about (seed 0)" in told
    assert "no model can do better than 0." in told


def test_the_description_of_a_folder_tells_what_was_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one line and another\n" * 500)
    (tmp_path / "b.bin").write_bytes(b"\0")
    assert "skipped 1 (1 binary)" in corpus_dataset(tmp_path, 300).describe()


def test_progress_is_told() -> None:
    told: list[str] = []
    stories_dataset(300, train_stories=10, valid_stories=5, progress=lambda what, done, total: told.append(what))
    assert told == ["training the tokenizer", "encoding", "encoding"]


def test_a_text_too_short_to_hold_any_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab")
    with pytest.raises(DataError, match="holds 2 bytes of text: too little"):
        corpus_dataset(tmp_path / "a.txt", 300)


def test_a_text_too_short_for_a_batch_is_refused_with_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a short note\n" * 20)
    dataset = corpus_dataset(tmp_path, 300)
    with pytest.raises(DataError, match="one batch of 8 x 128 needs 1,025"):
        dataset.train_batches(batch_size=8, seq_len=128, seed=0)


def test_shakespeare_comes_back_from_its_tokens(shared_data: Path) -> None:
    path = shared_data / "text/tinyshakespeare.input.txt"
    dataset = corpus_dataset(path, 512)
    (train,), (valid,) = texts(dataset, dataset.train.stream), texts(dataset, dataset.valid.stream)
    assert train + valid == path.read_text(encoding="utf-8")
    assert len(valid) == pytest.approx(0.1 * len(train + valid), rel=0.02)
