"""Programs are made when their constants are known, and again when they change."""

import numpy as np
import pytest

from torchane.runtime.frozen import sums

ARRAY = np.random.default_rng(0).standard_normal((48, 40)).astype(np.float32)


def test_equal_numbers_have_equal_sums_wherever_they_lie() -> None:
    assert sums({"a": ARRAY, "b": ARRAY.copy()})["a"] == sums({"b": ARRAY.copy()})["b"]


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[:, ::2], lambda a: a.reshape(40, 48), lambda a: a.astype(np.float16), lambda a: a[:0]])
def test_other_shapes_orders_and_dtypes_have_others(view) -> None:
    assert sums({"a": view(ARRAY)}) != sums({"a": ARRAY})


@pytest.mark.parametrize("view", [lambda a: a, lambda a: a.T, lambda a: a[:, ::2], lambda a: a[3:5]])
def test_any_number_of_any_view_counts(view) -> None:
    before = sums({"a": view(ARRAY)})
    changed = ARRAY.copy()
    view(changed)[-1, -1] += 1e-3
    assert sums({"a": view(changed)}) != before


def test_sums_read_a_turned_array_as_it_lies_and_copy_nothing() -> None:
    turned = ARRAY.T
    assert sums({"a": turned})["a"][0] == sums({"a": ARRAY})["a"][0]
