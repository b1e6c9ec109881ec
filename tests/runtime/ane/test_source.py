"""What the framework is handed: unique texts, weight files with every constant at its place, ports by symbol."""

import numpy as np
import pytest

from torchane.errors import DeviceError
from torchane.mil.blobs import BlobFile
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.name_constants import name_constants
from torchane.mil.save import WEIGHT_PATH, emit
from torchane.mil.text import parse
from torchane.runtime.ane.source import MOST_FILES, places, separated, source_of
from torchane.runtime.twin import read_program


def with_weights(count: int):
    """A chain of `count` convolutions, each with weights of its own."""
    b = Builder()
    x = b.input("a0_x", (1, 32, 1, 32))
    start = x
    for index in range(count):
        x = b.conv(x=x, weight=np.eye(32, dtype=np.float16).reshape(32, 32, 1, 1) * (1 + index / 16))
    return b.program(b.add(x=x, y=start, name="z0_y"))


def emitted(count: int):
    return emit(name_constants(with_weights(count)))


def test_texts_that_differ_in_weights_only_differ():
    text, blobs = emitted(2)
    changed = bytearray(blobs[WEIGHT_PATH])
    changed[-1] ^= 1
    one, other = source_of(text, blobs), source_of(text, {WEIGHT_PATH: bytes(changed)})
    assert one.text != other.text and one.key != other.key
    assert source_of(text, blobs) == one


def test_a_tagged_text_is_the_same_program():
    text, blobs = emitted(1)
    for given in (text, text.replace(text[text.index("[build") : text.index("]\n") + 2], "")):
        made = source_of(given, blobs)
        assert made.key in made.text
        assert parse(made.text).main.ops == parse(text).main.ops


def test_a_weight_file_that_the_text_does_not_name_is_not_handed_over():
    text, blobs = emitted(1)
    assert set(source_of(text, {**blobs, "@model_path/other.bin": b"x"}).weights) == {WEIGHT_PATH}


def test_each_block_of_a_packed_file_says_where_its_own_data_lies():
    _, blobs = emitted(5)
    records = BlobFile.from_bytes(blobs[WEIGHT_PATH]).records()
    assert len(records) == 5
    assert all(record.start == record.offset + 64 for record in records)


def test_separate_files_hold_the_same_constants():
    text, blobs = emitted(4)
    apart, files = separated(text, blobs)
    assert len(files) == 4
    x = np.random.default_rng(0).standard_normal((1, 32, 1, 32)).astype(np.float16)
    packed, alone = (evaluate(read_program(t, b, "main"), {"a0_x": x})["z0_y"] for t, b in ((text, blobs), (apart, files)))
    assert np.array_equal(packed, alone)


def test_more_constants_than_files_stay_packed():
    text, blobs = emitted(MOST_FILES + 1)
    assert separated(text, blobs) == (text, blobs)


def test_chips_of_the_first_generation_get_separate_files():
    text, blobs = emitted(3)
    assert len(source_of(text, blobs, "h13g").weights) == 3
    assert len(source_of(text, blobs, "h16g").weights) == 1


def test_ports_are_in_the_order_of_their_bytes_and_outputs_with_a_suffix():
    assert places(["x", "W", "a"], False, {}, "p") == [2, 0, 1]
    assert places(["y", "y2", "yb"], True, {}, "p") == [1, 0, 2]  # y2@output < y@output < yb@output


def test_a_program_that_lists_its_symbols_is_believed():
    listed = {"deep": {"er": {"kANEFModelInputSymbolsArrayKey": ["x", "a"], "kANEFModelOutputSymbolsArrayKey": ["y"]}}}
    assert places(["a", "x"], False, listed, "p") == [1, 0]
    assert places(["y"], True, listed, "p") == [0]


def test_a_program_that_lists_other_symbols_is_refused():
    with pytest.raises(DeviceError, match=r"p: the engine lists the inputs b, x and the text has a, x"):
        places(["a", "x"], False, {"kANEFModelInputSymbolsArrayKey": ["b", "x"]}, "p")
