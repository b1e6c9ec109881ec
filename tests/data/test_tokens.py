"""Tokens that others made: nanoGPT's and llama2.c's files, read where they lie."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchane.data.dataset import tokens_dataset
from torchane.data.shards import Shards, chunks, write_shard
from torchane.data.tokenizer import Tokenizer
from torchane.data.tokens import read_tokens, token_files
from torchane.errors import DataError


def write(path: Path, tokens: list[int] | np.ndarray) -> None:
    np.array(tokens, np.uint16).tofile(path)  # as both projects do


def test_nanogpts_folder_has_its_own_halves(tmp_path: Path) -> None:
    write(tmp_path / "train.bin", [1, 2, 3])
    write(tmp_path / "val.bin", [4, 5])
    (tmp_path / "input.txt").write_text("text")
    files = token_files(tmp_path)
    assert files is not None
    train, valid, notes = read_tokens(files, 10)
    assert (train.tolist(), valid.tolist()) == ([1, 2, 3], [4, 5]) and "nanoGPT's uint16 tokens, val.bin held out" in notes


def test_of_llama2cs_files_the_first_is_held_out(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"data0{i}.bin", [10 * i + k for k in range(5)])
    files = token_files(tmp_path)
    assert files is not None
    train, valid, _ = read_tokens(files, 100)
    assert valid.tolist() == [0, 1, 2, 3, 4]
    assert np.concatenate(list(chunks(train))).tolist() == [*range(10, 15), *range(20, 25)]


def test_of_one_file_the_tail_is_held_out(tmp_path: Path) -> None:
    write(tmp_path / "tokens.bin", np.arange(1000))
    train, valid, _ = read_tokens([tmp_path / "tokens.bin"], 1000)
    assert [*train.tolist(), *valid.tolist()] == list(range(1000)) and len(valid) == 100


@pytest.mark.parametrize("name", [["a.txt"], ["a.txt", "b.bin"], []])
def test_text_is_no_tokens(tmp_path: Path, name: list[str]) -> None:
    for one in name:
        (tmp_path / one).write_text("text")
    assert token_files(tmp_path) is None


@pytest.mark.parametrize(("content", "message"), [
    (b"", "it has 0 bytes"), (b"abc", "it has 3 bytes"), (np.array([7, 300], np.uint16).tobytes(), "has the token 300, and the model's vocabulary ends at 99"),
    (np.array([20240520, 1] + [0] * 254, np.int32).tobytes(), "begins with the header of llm.c"),
])  # fmt: skip
def test_what_is_no_stream_of_tokens_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    vocab_size = 100 if "99" in message else 1 << 16
    with pytest.raises(DataError, match=message):
        read_tokens([tmp_path / "x.bin"], vocab_size)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.bin")
    assert token_files(tmp_path / "x.bin") is None
    with pytest.raises(DataError, match="it is a named pipe"):
        read_tokens([tmp_path / "x.bin"], 100)


def test_without_a_tokenizer_there_are_no_bytes_and_with_one_there_are(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["one line and another\n" * 50], 300)
    write(tmp_path / "x.bin", tokenizer.encode("one line and another\n" * 200))
    bare = tokens_dataset([tmp_path / "x.bin"], 300)
    assert bare.train_bytes is None and "no bits per byte" in bare.describe()
    assert bare.train_batches(batch_size=2, seq_len=8, seed=0).batch(0).target_bytes == 0
    known = tokens_dataset([tmp_path / "x.bin"], 300, tokenizer)
    assert known.train_bytes is not None and known.valid_bytes is not None and known.train_bytes + known.valid_bytes == 21 * 200


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=6).filter(any), st.data())
def test_files_side_by_side_read_as_one_stream(parts: list[list[int]], data: st.DataObject) -> None:
    stream, whole = Shards([np.array(part, np.uint16) for part in parts]), np.array(sum(parts, []), np.uint16)
    positions = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=4, max_size=4))).reshape(2, 2)
    assert len(stream) == len(whole) and np.array_equal(stream[positions], whole[positions])


def test_a_shard_has_no_name_and_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write_shard([np.array([1, 2]), np.array([3])], np.uint16, tmp_path).tolist() == [1, 2, 3]
    assert write_shard([], np.uint16, tmp_path).tolist() == [] and os.listdir(tmp_path) == []
    monkeypatch.setattr("torchane.data.shards.np.ascontiguousarray", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DataError, match="could not be kept in .*: No space left on device"):
        write_shard([np.array([1])], np.uint16, tmp_path)
