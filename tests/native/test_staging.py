"""Copies between host tensors and surfaces, and sums over gradients, against NumPy."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchane import native
from torchane.errors import DeviceError

SIZES = st.sampled_from([1, 2, 3, 8, 17, 70])


def permuted(array: np.ndarray, perm: tuple[int, ...]) -> np.ndarray:
    """The same values, stored in the order of `perm`."""
    return np.ascontiguousarray(array.transpose(perm)).transpose(np.argsort(perm))


def bf16_bits(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint32) >> 16).astype(np.uint16)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_strides_both_ways(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(SIZES, min_size=1, max_size=4), label="shape"))
    perm = tuple(data.draw(st.permutations(range(len(shape))), label="perm"))
    pad = data.draw(st.sampled_from([0, 5]), label="pad")
    scale = data.draw(st.sampled_from([1.0, 0.25, 1024.0, 3.0]), label="scale")
    source = permuted(np.random.default_rng(0).standard_normal(shape).astype(np.float32), perm)
    surface = np.zeros((*shape[:-1], shape[-1] + pad), np.float16)[..., : shape[-1]]
    native.stage(surface, source, scale)
    assert np.array_equal(surface, (source * np.float32(scale)).astype(np.float16))
    back = permuted(np.zeros(shape, np.float32), perm)
    seen = native.unstage(back, surface, scale)
    assert np.array_equal(back, surface.astype(np.float32) * np.float32(scale))
    assert seen == native.scan(surface) == (np.abs(surface).max(), 0, (surface == 0).sum(), surface.size)


@pytest.mark.parametrize("form", ["fp32", "fp16", "bf16", "bool"])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_element_type_is_rounded_once(isa: str, form: str, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((130, 70)) * 10.0 ** rng.integers(-9, 6, (130, 70))).astype(np.float32)
    if form == "fp16":
        values = np.clip(values, -60000, 60000)
    if form == "bf16":
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    if form == "bool":
        values = (values > 0).astype(np.float32)
    source = {
        "fp32": lambda: values, "fp16": lambda: values.astype(np.float16), "bf16": lambda: bf16_bits(values), "bool": lambda: values.astype(np.bool_),
    }[form]()  # fmt: skip
    exact = source.astype(np.float32) if form == "fp16" else values
    source, exact = (source.T, exact.T) if transposed else (source, exact)
    surface = np.empty(source.shape, np.float16)
    native.stage(surface, source, 0.5, bf16=form == "bf16")
    with np.errstate(over="ignore"):
        wanted = (exact * np.float32(0.5)).astype(np.float16)
    assert surface.tobytes() == wanted.tobytes()


def test_halfway_numbers_go_to_even(isa: str) -> None:
    source = np.array([1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 3 * 2**-25, 65519.99, 65520, -np.inf], np.float32)
    surface = np.empty(7, np.float16)
    native.stage(surface, source)
    assert surface.tolist() == [1, 1 + 2**-9, 0, 2**-23, 65504, np.inf, -np.inf]


def test_the_statistics_count_what_is_not_finite(isa: str) -> None:
    surface = np.array([[0, -0.0, 1], [np.nan, np.inf, -3]], np.float16)
    assert native.scan(surface) == (np.inf, 2, 2, 6)
    assert native.scan(surface[:, 2:]) == (3, 0, 0, 2)
    assert native.unstage(np.empty((2, 3), np.float32), surface)[1:] == (2, 2, 6)


def test_large_counts_do_not_overflow(isa: str) -> None:
    assert native.scan(np.zeros(200_001, np.float16)) == (0, 0, 200_001, 200_001)
    assert native.scan(np.full(200_001, np.inf, np.float16))[1] == 200_001


def test_many_copies_in_one_call() -> None:
    rng = np.random.default_rng(0)
    sources = [rng.standard_normal(shape).astype(np.float32) for shape in [(3, 4), (1000, 70), (0, 5), ()]]
    surfaces = [np.empty(source.shape, np.float16) for source in sources]
    native.stage_many([(to, source, 2.0) for to, source in zip(surfaces, sources)])
    back = [np.empty(source.shape, np.float32) for source in sources]
    seen = native.unstage_many([(to, surface, 0.5) for to, surface in zip(back, surfaces)])
    for source, surface, returned, stats in zip(sources, surfaces, back, seen):
        assert np.array_equal(surface, (source * 2).astype(np.float16))
        assert np.array_equal(returned, surface.astype(np.float32) / 2)
        assert stats[3] == source.size


def test_sums_are_those_of_float64(isa: str) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(n).astype(np.float32) for n in (1, 17, 100_000, 0)]
    assert native.sum_of_squares(arrays) == pytest.approx(sum((a.astype(np.float64) ** 2).sum() for a in arrays), rel=1e-13)
    assert native.mean(arrays[2]) == pytest.approx(arrays[2].astype(np.float64).mean(), rel=1e-9)


def test_sums_have_the_same_bits_everywhere(set_threads: Callable[[int], None]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(n).astype(np.float32) for n in (300_001, 70_000)]
    before, results = native.get_isa(), set()
    for name in native.isas():
        for count in (1, 2, 3, 5):
            native.set_isa(name)
            set_threads(count)
            results.add((native.sum_of_squares(arrays), native.mean(arrays[0])))
    native.set_isa(before)
    assert len(results) == 1


def test_scale_in_place(isa: str) -> None:
    arrays = [np.arange(n, dtype=np.float32) for n in (5, 70_001)]
    native.scale_in_place(arrays, 0.5)
    assert all(np.array_equal(array, np.arange(array.size) * np.float32(0.5)) for array in arrays)


HALF, SINGLE = np.zeros((4, 4), np.float16), np.zeros((4, 4), np.float32)


def one_byte_on(array: np.ndarray) -> np.ndarray:
    """A copy that begins one byte further on than its numbers may."""
    return np.zeros(array.nbytes + 64, np.uint8)[1 : 1 + array.nbytes].view(array.dtype).reshape(array.shape)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: native.stage(SINGLE.copy(), SINGLE), "dst holds float32"),
        (lambda: native.stage(HALF.copy(), SINGLE.astype(np.float64)), "src holds float64"),
        (lambda: native.stage(HALF.copy(), HALF.view(np.uint16)), "src holds uint16"),
        (lambda: native.stage(HALF.copy(), SINGLE[:3]), r"dst has the shape \(4, 4\) and src \(3, 4\)"),
        (lambda: native.stage([1.0], SINGLE), "dst is a list"),
        (lambda: native.stage(HALF.copy(), SINGLE.astype(">f4")), "src holds >f4; numbers of this machine's byte order"),
        (lambda: native.stage(HALF.copy(), one_byte_on(SINGLE)), "src does not begin at a multiple of 4 bytes"),
        (lambda: native.stage(one_byte_on(HALF), SINGLE), "dst does not begin at a multiple of 2 bytes"),
        (lambda: native.stage(np.broadcast_to(HALF[:1], (4, 4)), SINGLE), "dst is read-only"),
        (lambda: native.unstage(HALF.copy(), HALF), "dst holds float16"),
        (lambda: native.unstage(SINGLE.copy(), HALF.astype(np.bool_)), "src holds bool"),
        (lambda: native.unstage(SINGLE.copy(), SINGLE), "src holds float32"),
        (lambda: native.scan(SINGLE), "src holds float32"),
        (lambda: native.sum_of_squares([SINGLE.T[::2]]), "strided"),
        (lambda: native.scale_in_place([HALF.copy()], 2.0), "holds float16"),
        (lambda: native.mean(np.zeros(0, np.float32)), "empty"),
        (lambda: native.stage_many([(HALF, SINGLE)]), "2 values"),
        (lambda: native.set_threads(0), "at least 1"),
        (lambda: native.set_isa("mmx"), "mmx"),
    ],
)
def test_what_would_need_a_copy_or_makes_no_sense_is_refused(call: Callable[[], None], complaint: str) -> None:
    with pytest.raises(DeviceError, match=complaint):
        call()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size", [0, 1, 7, 64, 65, 100_003])
def test_a_checksum_changes_with_any_number_and_with_no_number_of_threads(size: int, dtype: type, set_threads: Callable[[int], None]) -> None:
    array = np.random.default_rng(size).standard_normal(size).astype(dtype)
    (whole,) = native.checksums([array])
    set_threads(3)
    assert native.checksums([array, array]) == [whole, whole]
    for place in {0, size // 2, size - 1} if size else ():
        changed = array.copy()
        changed[place] = np.nextafter(changed[place], dtype(9))
        assert native.checksums([changed]) != [whole]
    if size > 1:
        assert native.checksums([array[1:].copy()]) != [whole] and native.checksums([array[::-1].copy()]) != [whole]


def test_a_checksum_wants_dense_memory() -> None:
    with pytest.raises(DeviceError, match="not dense"):
        native.checksums([np.zeros((4, 4), np.float32).T[:2]])


@pytest.mark.parametrize("size", [0, 1, 7, 63, 64, 200, 300_000])
def test_the_largest_magnitude_is_numpys(isa: str, size: int) -> None:
    array = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    assert native.largest(array) == np.abs(array).max(initial=0)
    for place in {0, size // 2, size - 1} if size else ():
        for number in (-1e30, np.inf, -np.inf, np.nan):
            changed = array.copy()
            changed[place] = number
            assert np.array_equal(native.largest(changed), np.abs(changed).max(), equal_nan=True)


def test_a_strided_array_has_no_largest_magnitude() -> None:
    with pytest.raises(DeviceError, match="strided"):
        native.largest(np.zeros((4, 4), np.float32)[:, :2])
