"""A real engine's attention, bit for bit, and what each part of the rules contributes to that.

Each ablation changes one thing and keeps the reciprocals as they were observed. They are our own counts; an
independent fit gives the same but for the table's format (43,723), e^d not rounded (14,959) and the scale (20,002), whose procedure
is not recorded.
"""

from dataclasses import replace

import golden_attention
import numpy as np
import pytest

from torchane.mil.engine import Settings, engine
from torchane.mil.engine.numbers import decoded, halves
from torchane.mil.engine.settings import Exponential, Products, Softmax
from torchane.mil.evaluate import EXACT, evaluate

TOTAL = 49152
NEAREST = Softmax(reciprocal="nearest")


@pytest.fixture(scope="module")
def capture(shared_data):
    return shared_data / "golden" / "espresso-full_fused"


@pytest.fixture(scope="module")
def halfway(capture):
    """Q, K and V of the captured input by the engine's rules: what every softmax ablation starts from."""
    function = golden_attention.program(capture).main
    names = ("q", "k", "v")
    inner = tuple(op.output for op in function.ops if op.output.name in names)
    values = evaluate(replace(function, outputs=inner), golden_attention.inputs(capture), arithmetic="engine")
    start = 1 + max(i for i, op in enumerate(function.ops) if op.output in inner)
    return replace(function, inputs=inner, ops=function.ops[start:]), values


def equal(halfway, capture, arithmetic):
    function, values = halfway
    return int((evaluate(function, values, arithmetic=arithmetic)["out"] == golden_attention.outputs(capture)).sum())


def test_every_output_of_the_attention_is_reproduced(halfway, capture):
    assert equal(halfway, capture, "engine") == TOTAL


def test_without_the_observed_reciprocals_three_quarters_are(halfway, capture):
    assert equal(halfway, capture, engine(Settings(softmax=NEAREST))) == 38393


def test_ordinary_arithmetic_reproduces_next_to_nothing(halfway, capture):
    assert equal(halfway, capture, EXACT) < TOTAL // 10


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "settings", "count"),
    [
        ("no cut after 19 bits", Settings(exponential=Exponential(fraction_bits=None)), 49032),
        ("u not rounded", Settings(exponential=Exponential(input_is_half=False)), 49032),
        ("exact log2 e", Settings(exponential=Exponential(multiplier=1 / np.log(2))), 48768),
        ("table not in fp16", Settings(exponential=Exponential(table_is_half=False)), 42517),
        ("e^d not rounded", Settings(exponential=Exponential(result_is_half=False)), 11139),
        ("row sum from left to right", Settings(softmax=Softmax("in turn", "nearest")), 9457),
        ("exact row sum", Settings(softmax=Softmax("exact", "nearest")), 9371),
        ("division", Settings(softmax=Softmax(reciprocal="division")), 13212),
        ("subnormal exponents", Settings(Products(lowest_exponent=None), softmax=NEAREST), 38339),
    ],
)
def test_leaving_out_one_part_is_seen(capture, halfway, evidence, what, settings, count):
    if what == "subnormal exponents":  # matters before the softmax too
        program = golden_attention.program(capture)
        out = evaluate(program, golden_attention.inputs(capture), arithmetic=engine(settings))["out"]
        found = int((out == golden_attention.outputs(capture)).sum())
    else:
        found = equal(halfway, capture, engine(settings))
    evidence(f"equal outputs of {TOTAL:,}: {what}", found)
    assert found == count


@pytest.mark.long
@pytest.mark.parametrize(("output", "count"), [("scores", 44976), ("attn_4d", 5399)])
def test_exact_products_in_one_matmul_are_seen(capture, halfway, evidence, output, count):
    base, plain = engine(), engine(Settings(Products(fraction_bits=None)))

    def rule(op, args):
        return (plain if op.output.name == output else base).rules["matmul"](op, args)

    found = equal(halfway, capture, replace(base, rules={**base.rules, "matmul": rule}))
    evidence(f"equal outputs of {TOTAL:,}: exact products in {output}", found)
    assert found == count


@pytest.mark.long
def test_scaling_before_the_scores_is_seen(capture, halfway, evidence):
    base = engine()

    def matmul(op, args):
        before = 0.125 if op.output.name == "scores" else 1.0
        return base.rules["matmul"](op, {**args, "x": decoded(halves(args["x"] * before))})

    def mul(op, args):
        return (args["x"],)

    found = equal(halfway, capture, replace(base, rules={**base.rules, "matmul": matmul, "mul": mul}))
    evidence(f"equal outputs of {TOTAL:,}: scaled before the scores", found)
    assert found == 17328
