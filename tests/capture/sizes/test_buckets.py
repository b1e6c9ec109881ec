"""Which program serves a size."""

import pytest

from torchane.capture.sizes.buckets import Buckets
from torchane.errors import UsageError


def test_lengths_from_8_to_512_have_eight_buckets() -> None:
    assert sorted({Buckets().of(size, is_first=False) for size in range(8, 513)}) == [32, 64, 96, 128, 192, 256, 384, 512]


def test_small_batches_have_buckets_of_their_own() -> None:
    assert [Buckets().of(size, is_first=True) for size in (2, 3, 5, 8, 9, 32, 33)] == [2, 4, 8, 8, 16, 32, 64]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_bucket_holds_its_sizes_and_costs_at_most_half_as_much_again(is_first: bool) -> None:
    for size in range(2, 5000):
        bucket = Buckets().of(size, is_first)
        assert bucket >= size and Buckets().of(bucket, is_first) == bucket
        assert size <= 64 or bucket <= 1.5 * size


@pytest.mark.parametrize("given", [(16, 100), [16, 100], "16, 100"])
def test_a_list_of_the_users_is_kept_and_goes_on_in_steps_of_its_last(given: object) -> None:
    assert [Buckets.parse(given).of(size, False) for size in (2, 16, 17, 100, 101, 201)] == [16, 16, 100, 100, 200, 300]


@pytest.mark.parametrize(
    ("given", "said"),
    [((64, 32), r"must grow.*Write \(32, 64\)"), ((32, 32), "must grow"), ("on", "sizes that grow"), ((), "sizes that grow"), ((0, 32), "sizes that grow"), (7, "sizes that grow")],
)  # fmt: skip
def test_a_list_that_does_not_grow_is_refused(given: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Buckets.parse(given)
