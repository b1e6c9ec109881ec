"""What an op kind checks before its rules run."""

import numpy as np
import pytest

from torchane.errors import CompileError
from torchane.mil.build import Builder
from torchane.mil.kinds import KINDS, OpKind, kind_of
from torchane.mil.types import FP16, INT32, ListType, TensorType

X = TensorType(FP16, (2, 3))


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("softmax", {"x": X, "axis": True}, "softmax: axis is True"),
        ("softmax", {"x": X, "axis": 0.5}, "softmax: axis is 0.5"),
        ("transpose", {"x": X, "perm": 1}, "transpose: perm is 1"),
        ("transpose", {"x": X, "perm": (1, "a")}, "transpose: perm is"),
        ("relu", {"x": ListType(X)}, "relu: x is a list<tensor<fp16"),
        ("concat", {"values": X, "axis": 0}, "concat: values is a tensor"),
        ("concat", {"values": (X, ListType(X)), "axis": 0}, "concat: values is a"),
        ("matmul", {"x": X, "y": X, "transpose_x": 1}, "matmul: transpose_x is 1"),
        ("relu", {"x": X, "alpha": 1.0}, "relu: got an unexpected keyword argument 'alpha'"),
    ],
)
def test_annotations_are_enforced_and_the_signature_shown(op, args, message):
    with pytest.raises(CompileError, match=f"{message}.*Its signature is {op}\\("):
        KINDS[op].infer(args)


def test_an_int_passes_for_a_float():
    assert KINDS["clip"].infer({"x": X, "alpha": 0, "beta": 6}) == (X,)


def test_usage_names_types_shortly():
    assert KINDS["softmax"].usage == "softmax(x: TensorType, axis: int = -1)"


def test_a_run_time_value_is_refused_where_a_constant_is_asked():
    builder = Builder()
    axis = builder.input("axis", (), INT32)
    with pytest.raises(CompileError, match="softmax: axis must be a constant, and axis is only known at run time"):
        builder.softmax(x=builder.input("x", (2, 3)), axis=axis)


def test_unknown_ops_equal_themselves_and_have_no_rules():
    assert kind_of("apple_internal") == OpKind("apple_internal", known=False)
    assert not kind_of("apple_internal").has_rules
    with pytest.raises(CompileError, match="apple_internal: torchane has no type rule"):
        kind_of("apple_internal").infer({})


def test_rules_run_without_warnings():
    assert np.isnan(KINDS["sqrt"].evaluate({"x": np.array([-1.0])})[0]).all()
