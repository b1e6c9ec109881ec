"""Which program a call has: its own bucket's, or one that is there."""

from typing import Any

import torch
from sizes_helpers import captured

from torchane.capture.sizes import served
from torchane.capture.sizes.buckets import Buckets
from torchane.capture.sizes.served import Served


def _served(buckets: Any = "auto") -> Served:
    gm, _ = captured(lambda x: torch.tanh(x) * 2, torch.randn(3, 40), dynamic=[(0, 1)])
    return Served(gm, Buckets.parse(buckets))


def _sizes(one: Served, lengths: list[int]) -> list[int]:
    found = []
    for length in lengths:
        made = one.bucket([length if not isinstance(given, torch.Tensor) else torch.randn(3, length) for given in _inputs(one)])
        assert made is not None, one.reason
        found += made[0].sizes.values()
    return found


def _inputs(one: Served) -> list[Any]:
    return [node.meta["example_value"] for node in one._gm.graph.find_nodes(op="placeholder")]


def test_early_calls_have_their_own_buckets() -> None:
    assert _sizes(_served(), [500, 250, 60, 20]) == [512, 256, 64, 32]


def test_a_rare_size_late_in_a_run_is_lent_a_program_that_is_there() -> None:
    one = _served()
    _sizes(one, [500] * served.EARLY)
    assert _sizes(one, [250, 60, 300, 20, 300]) == [512, 64, 512, 64, 512]


def test_a_size_that_comes_often_gets_its_own_in_the_end() -> None:
    one = _served()
    _sizes(one, [500] * served.EARLY)
    assert _sizes(one, [250] * (served.LOST + 2)) == [512] * served.LOST + [256, 256]


def test_a_size_that_loses_little_is_lent_for_longer() -> None:
    one = _served()
    _sizes(one, [500] * served.EARLY)
    assert _sizes(one, [300] * (3 * served.LOST)) == [512] * 3 * served.LOST


def test_what_grows_is_compiled_at_each_doubling() -> None:
    """As a cache does, over 500 tokens."""
    assert sorted(set(_sizes(_served(), list(range(40, 541))))) == [64, 128, 256, 512, 1024]


def test_named_buckets_lend_nothing() -> None:
    one = _served((64, 100))
    _sizes(one, [90] * served.EARLY)
    assert _sizes(one, [60]) == [64]


def test_lengths_of_an_encoder_and_a_decoder_add_up() -> None:
    """256 and 256 are lent 384 and 384: one and a half times the work, not 2.25."""
    weight = torch.randn(4, 4)
    gm, given = captured(lambda x, y: (x @ weight, y @ weight), torch.randn(40, 4), torch.randn(41, 4), dynamic=[(0, 0), (1, 0)])
    one = Served(gm, Buckets())

    def serving(n: int) -> list[int]:
        found = one.bucket([n if isinstance(arg, int) else torch.randn(n, 4) if arg.shape[0] > 4 else arg for arg in given])
        assert found is not None, one.reason
        return list(found[0].sizes.values())

    assert [serving(380) for _ in range(served.EARLY)][-1] == [384, 384]
    assert serving(250) == [384, 384]
    assert serving(90) == [96, 96]
