"""Where frozen weights lie in a program's file, and what numbers they have there."""

import numpy as np
import pytest

from torchane.abi.frozen import FROZEN_PATH, Constant, blobs_of, dequantised, frozen_file, quantised, stored
from torchane.abi.ports import weight_port_layout
from torchane.mil.blobs import BlobFile
from torchane.mil.types import FP16, DType

WEIGHT = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
LAYOUT = weight_port_layout((96, 64))


def test_every_record_lies_where_the_text_says_and_equal_weights_are_not_shared() -> None:
    constants = [
        Constant(0, LAYOUT, (96, 64, 1, 1)), Constant(0, LAYOUT, (64, 96, 1, 1), is_transposed=True),
        Constant(1, LAYOUT, (96, 64, 1, 1), form="int8", rounded="int8"), Constant(2, LAYOUT, (96, 64, 1, 1), form="int4", rounded="int4"),
        Constant(3, LAYOUT, (96, 64, 1, 1)),
    ]  # fmt: skip
    file = BlobFile.from_bytes(frozen_file(constants, [WEIGHT] * 5, [1.0] * 5), FROZEN_PATH)
    for constant, places in zip(constants, blobs_of(constants), strict=True):
        for place, (dtype, shape), array in zip(places, constant.parts, stored(constant, WEIGHT), strict=True):
            found = file.read_as(place.offset, dtype).reshape(shape)
            np.testing.assert_array_equal(found, array.reshape(shape))
            assert file.record(place.offset).dtype is dtype


def test_a_transposed_constant_has_inputs_and_outputs_the_other_way_round() -> None:
    (array,) = stored(Constant(0, LAYOUT, (64, 96, 1, 1), is_transposed=True), WEIGHT, 4.0)
    np.testing.assert_array_equal(array[:, :, 0, 0], (4 * WEIGHT.T).astype(np.float16))


def test_a_matrix_whose_port_has_its_axes_turned_is_written_as_its_port_has_it() -> None:
    weight = WEIGHT[:, :40]  # 40 is no multiple of 32, and 96 is
    layout = weight_port_layout((96, 40))
    assert layout.order == (1, 0)
    (array,) = stored(Constant(0, layout, (96, 40, 1, 1), is_transposed=True), weight)
    np.testing.assert_array_equal(array[:, :, 0, 0], weight.astype(np.float16))


@pytest.mark.parametrize(("form", "most"), [("int8", 127), ("int4", 7)])
def test_numbers_and_scales_of_few_bits(form: str, most: int) -> None:
    numbers, scales = quantised(WEIGHT, form)
    assert numbers.dtype == np.int8 and scales.dtype == np.float16 and np.abs(numbers).max() == most
    wide = numbers.astype(np.float64) * scales.astype(np.float64)[:, None]
    assert (np.abs(wide - WEIGHT) <= 0.51 * scales.astype(np.float64)[:, None]).all()  # half a step, and the scale's own rounding
    np.testing.assert_array_equal(dequantised(WEIGHT, form), wide.astype(np.float16).astype(np.float32))


def test_rows_of_zeros_and_of_tiny_numbers_have_a_scale() -> None:
    weight = np.stack([np.zeros(32, np.float32), np.full(32, 1e-6, np.float32), np.linspace(-1, 1, 32, dtype=np.float32)])
    numbers, scales = quantised(weight, "int8")
    assert (scales > 0).all() and not numbers[0].any() and not numbers[1].any()
    assert np.isfinite(dequantised(weight, "int8")).all()


def test_few_bits_that_a_program_holds_in_fp16_have_the_same_numbers() -> None:
    (array,) = stored(Constant(0, LAYOUT, (64, 96, 1, 1), is_transposed=True, form="fp16", rounded="int8"), WEIGHT)
    np.testing.assert_array_equal(array[:, :, 0, 0].astype(np.float32), dequantised(WEIGHT, "int8").T)


def test_sizes_are_of_what_is_stored() -> None:
    assert Constant(0, LAYOUT, (96, 64, 1, 1)).size_bytes == 96 * 64 * 2
    assert Constant(0, LAYOUT, (96, 64, 1, 1), form="int4", rounded="int4").size_bytes == 96 * 32 + 96 * 2
    assert Constant(0, LAYOUT, (96, 64, 1, 1), form="int8", rounded="int8").parts[1] == (FP16, (96, 1, 1, 1))
    assert Constant(0, LAYOUT, (96, 64, 1, 1), form="int4", rounded="int4").parts[0][0] is DType.INT4
