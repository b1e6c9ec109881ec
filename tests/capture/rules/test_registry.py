"""Which nodes rules take, and the reasons where they do not."""

import pytest
import torch
from harness import trace

from torchane.capture import rules
from torchane.capture.rules.decompose import SOMETIMES
from torchane.capture.rules.registry import RULES, Rule
from torchane.chips import load

aten = torch.ops.aten


def node_of(function, *inputs, target):
    return next(node for node in trace(function, *inputs).graph.nodes if node.target == target)


def test_float_product_has_a_rule():
    node = node_of(lambda x: x @ x, torch.ones(3, 3), target=aten.mm.default)
    assert isinstance(rules.rule_for(node), Rule)
    assert rules.why_not(node) is None


@pytest.mark.parametrize(
    ("dtype", "word"), [(torch.int64, "int64"), (torch.float64, "float64"), (torch.complex64, "complex64")]
)
def test_other_element_types_run_on_the_host(dtype, word):
    node = node_of(lambda x: x + x, torch.ones(3, dtype=dtype), target=aten.add.Tensor)
    assert rules.rule_for(node) is None
    assert word in rules.why_not(node)


def test_six_axes_and_empty_tensors_run_on_the_host():
    deep = node_of(lambda x: x + x, torch.ones((1,) * 6), target=aten.add.Tensor)
    empty = node_of(lambda x: x + x, torch.ones(0), target=aten.add.Tensor)
    assert "6 axes" in rules.why_not(deep)
    assert "empty" in rules.why_not(empty)


def test_mask_enters_a_product():
    node = node_of(lambda x: x * (torch.arange(3) > 1), torch.ones(3), target=aten.mul.Tensor)
    assert rules.why_not(node) is None


def test_places_of_an_extreme_that_are_read_keep_it_on_the_host():
    values = node_of(lambda x: x.max(0).values, torch.ones(3), target=aten.max.dim)
    places = node_of(lambda x: x.max(0).indices, torch.ones(3), target=aten.max.dim)
    assert rules.why_not(values) is None
    assert "result 1" in rules.why_not(places)


def test_unknown_op_is_named_as_such():
    node = node_of(lambda x: torch.linalg.inv_ex(x)[0], torch.eye(2), target=aten.linalg_inv_ex.default)
    assert rules.why_not(node) == "torchane has no rule for it"


def test_logarithm_waits_for_a_chip_that_takes_it():
    node = node_of(torch.log, torch.ones(3), target=aten.log.default)
    assert rules.why_not(node) == "it needs log, which the chip portable does not take"
    assert rules.why_not(node, load("m4")) is None
    assert rules.why_not(node, load("m3")) == "it needs log, and nobody has reported that the chip m3 takes it"


def test_search_for_infinity_and_nan_runs_on_the_host():
    infinite = node_of(lambda x: x == float("inf"), torch.ones(3), target=aten.eq.Scalar)
    nan = node_of(lambda x: torch.ne(x, x), torch.ones(3), target=aten.ne.Tensor)
    assert "compares with inf" in rules.why_not(infinite)
    assert "NaN" in rules.why_not(nan)


def test_every_rule_is_in_the_coverage_table_once():
    names = [name for family in rules.covered_ops().values() for name in family]
    assert sorted(names) == sorted(map(str, RULES))


def test_what_has_a_rule_is_not_decomposed():
    assert set(RULES) & set(rules.decompositions()) == set(SOMETIMES)


def test_finite_numbers_and_other_powers_keep_their_rules():
    x = torch.ones(3)
    for arguments in ((aten.full_like.default, x, 2.0), (aten.new_full.default, x, (2,), 1), (aten.pow.Tensor_Scalar, x, 2)):
        assert SOMETIMES[arguments[0]](*arguments[1:]) is NotImplemented


def test_dropout_draws_the_mask_of_eager():
    x = torch.ones(64, 65)
    torch.manual_seed(3)
    eager = torch.nn.functional.dropout(x, 0.3)
    torch.manual_seed(3)
    y, mask = rules.decompositions()[aten.native_dropout.default](x, 0.3, True)
    assert torch.allclose(y, eager) and torch.equal(mask, eager != 0)
