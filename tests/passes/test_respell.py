"""The second spelling of a program: the same numbers, by other ops."""

import numpy as np
import pytest

from torchane import chips
from torchane.mil.build import Builder
from torchane.mil.check import check
from torchane.mil.evaluate import evaluate
from torchane.passes.respell import NEEDS, RULES, respell

SHAPE = (1, 16, 1, 32)
WEIGHT = np.random.default_rng(0).standard_normal((8, 16, 1, 1)).astype(np.float16)

BUILT = {
    "softmax": lambda b, x: b.softmax(x=x, axis=-1),
    "softmax over channels": lambda b, x: b.softmax(x=x, axis=1),
    "pow": lambda b, x: b.pow(x=b.add(x=b.mul(x=x, y=x), y=0.5), y=-0.5),
    "sqrt": lambda b, x: b.sqrt(x=b.mul(x=x, y=x)),
    "sigmoid": lambda b, x: b.sigmoid(x=x),
    "matmul of x turned": lambda b, x: b.matmul(x=b.reshape(x=x, shape=(1, 1, 16, 32)), y=b.reshape(x=x, shape=(1, 1, 16, 32)), transpose_x=True),
    "matmul of y turned": lambda b, x: b.matmul(x=b.reshape(x=x, shape=(1, 1, 16, 32)), y=b.reshape(x=x, shape=(1, 1, 16, 32)), transpose_y=True),
    "conv": lambda b, x: b.conv(x=x, weight=WEIGHT),
}


def program(build):
    b = Builder()
    x = b.input("a0_x", SHAPE)
    return b.program(b.mul(x=build(b, x), y=2.0, name="z0_y"))


@pytest.mark.parametrize("name", BUILT)
def test_the_numbers_are_the_same_within_roundings(name):
    given = program(BUILT[name])
    other = respell(given)
    check(other)
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float16)
    want, got = (evaluate(one, {"a0_x": x})["z0_y"].astype(np.float64) for one in (given, other))
    assert np.abs(got - want).max() <= 4 * 2.0**-11 * np.abs(want).max()  # at most four roundings more
    kind = name.split()[0]
    assert {op.kind.name for op in other.ops} >= set(NEEDS[kind]) and other != given


@pytest.mark.parametrize(
    "build",
    [
        lambda b, x: b.pow(x=x, y=2.0),
        lambda b, x: b.matmul(x=b.reshape(x=x, shape=(1, 1, 16, 32)), y=b.reshape(x=x, shape=(1, 1, 32, 16))),
        lambda b, x: b.conv(x=x, weight=WEIGHT.repeat(3, axis=3), pad_type="same"),
        lambda b, x: b.conv(x=x, weight=WEIGHT[:, :8], groups=2),
        lambda b, x: b.conv(x=x, weight=WEIGHT, bias=np.ones(8, np.float16)),
    ],
    ids=["another power", "nothing turned", "a wide filter", "groups", "a bias"],
)
def test_what_is_no_such_op_stays(build):
    given = program(build)
    assert respell(given) == given


def test_signature_and_order_of_ports_stay():
    given = program(BUILT["softmax"])
    other = respell(given)
    assert (other.inputs, other.outputs) == (given.inputs, given.outputs)


def test_a_chip_is_written_in_ops_that_it_takes():
    chip = chips.load("portable")
    assert RULES.keys() == NEEDS.keys()
    for kind, needed in NEEDS.items():
        assert all(map(chip.takes, needed)), kind
