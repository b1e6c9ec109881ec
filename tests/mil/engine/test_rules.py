"""Ops in the engine's arithmetic against the same sums spelled otherwise, and the records of what is known."""

import numpy as np
import pytest

from torchane.errors import CompileError
from torchane.mil import evaluate
from torchane.mil.build import Builder
from torchane.mil.engine import RECORDS, Evidence, table
from torchane.mil.engine.records import MAKERS, record_of
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, TensorType


def halves_of(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float16)


def run(build, **inputs):
    b = Builder()
    result = build(b, **{name: b.input(name, TensorType(FP16, x.shape)) for name, x in inputs.items()})
    return evaluate(b.program(result), inputs, arithmetic="engine")[result.name]


def test_a_1x1_convolution_is_a_matmul():
    x, w = halves_of(0, 1, 24, 1, 40), halves_of(1, 16, 24)
    conv = run(lambda b, x: b.conv(x=x, weight=w[:, :, None, None]), x=x)
    matmul = run(lambda b, x: b.matmul(x=w, y=x), x=x[0, :, 0])
    assert (conv[0, :, 0] == matmul).all()


def test_a_larger_convolution_sums_its_patches():
    x, w, bias = halves_of(0, 2, 4, 6, 7), halves_of(1, 6, 2, 3, 3), halves_of(2, 6)
    args = {"strides": (2, 1), "pad_type": "custom", "pad": (1, 0, 1, 2), "groups": 2}
    found = run(lambda b, x: b.conv(x=x, weight=w, bias=bias, **args), x=x)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 0), (1, 2)])
    for n, o, i, j in np.ndindex(*found.shape):
        patch = padded[n, 2 * (o // 3) : 2 * (o // 3) + 2, 2 * i : 2 * i + 3, j : j + 3].reshape(1, -1)
        one = run(lambda b, p: b.linear(x=p, weight=w[o].reshape(1, -1), bias=bias[o : o + 1]), p=np.ascontiguousarray(patch))
        assert found[n, o, i, j] == one[0, 0]


def test_transposed_operands_give_the_same_bits():
    x, y = halves_of(0, 3, 8, 12), halves_of(1, 3, 12, 10)
    plain = run(lambda b, x, y: b.matmul(x=x, y=y), x=x, y=y)
    turned = run(
        lambda b, x, y: b.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
        x=np.ascontiguousarray(x.swapaxes(1, 2)), y=np.ascontiguousarray(y.swapaxes(1, 2)),
    )  # fmt: skip
    einsum = run(lambda b, x, y: b.einsum(values=(x, y), equation="chw,cwr->chr"), x=x, y=y)
    assert (plain == turned).all() and (plain == einsum).all()


def test_one_op_of_attention_is_its_parts():
    q, k, v = halves_of(0, 2, 5, 16), halves_of(1, 2, 7, 16), halves_of(2, 2, 7, 8)

    def parts(b, q, k, v):
        scores = b.mul(x=b.matmul(x=q, y=k, transpose_y=True), y=np.float16(0.25))
        return b.matmul(x=b.softmax(x=scores), y=v)

    whole = run(lambda b, q, k, v: b.scaled_dot_product_attention(query=q, key=k, value=v), q=q, k=k, v=v)
    assert (whole == run(parts, q=q, k=k, v=v)).all()


@pytest.mark.parametrize(("x", "y", "name", "out"), [
    (2048, 1, "add", 2050), (40000, 1, "add", 40000), (16384, 16384, "add", 32768), (2**-12, 2**-12, "mul", 2**-24),
    (256, 256, "mul", np.inf), (np.nan, 1, "add", np.inf), (np.inf, np.inf, "sub", 0), (np.inf, 0, "mul", 0),
])  # fmt: skip
def test_element_wise_ops_are_as_measured(x, y, name, out):
    x, y = np.full(1, x, np.float16), np.full(1, y, np.float16)
    assert run(lambda b, x, y: getattr(b, name)(x=x, y=y), x=x, y=y)[0] == out


def test_probabilities_add_up_to_nearly_one_for_any_length():
    x = halves_of(0, 4, 77, scale=3)
    total = run(lambda b, x: b.softmax(x=x), x=x).astype(np.float64).sum(-1)
    assert np.abs(total - 1).max() < 0.01


def test_softmax_along_another_axis_is_softmax_of_the_transpose():
    x = halves_of(0, 6, 33)
    along = run(lambda b, x: b.softmax(x=x, axis=0), x=x)
    assert (along.T == run(lambda b, x: b.softmax(x=x), x=np.ascontiguousarray(x.T))).all()


def test_every_rule_has_a_record_and_every_record_names_ops():
    assert set(MAKERS) <= set(KINDS)
    assert all(record_of(op).ops != ("*",) for op in MAKERS)
    assert all(r.source and r.holds and r.unknown for r in RECORDS)
    assert record_of("matmul").evidence is Evidence.PROVEN and record_of("pow").evidence is Evidence.ASSUMED
    assert "softmax" in table()


@pytest.mark.parametrize("equation", ["ab,cd->ad", "aab,bc->ac", "ab->a", "ab,bc,cd->ad"])
def test_an_einsum_that_is_no_product_of_two_matrices_is_refused(equation):
    """How the engine sums an axis that one operand has alone is not known."""
    b = Builder()
    terms = equation.partition("->")[0].split(",")
    values = tuple(b.input(f"x{place}", (2,) * len(term)) for place, term in enumerate(terms))
    program = b.program(b.einsum(values=values, equation=equation))
    given = {var.name: np.ones(var.shape) for var in program.inputs}
    evaluate(program, given)
    with pytest.raises(CompileError, match="not one matrix product of two operands"):
        evaluate(program, given, arithmetic="engine")
