"""Whatever a file makes of an op's arguments, its type rule answers with types or with our error."""

import random
from inspect import Parameter
from types import UnionType
from typing import Any, get_args, get_origin

import numpy as np
import pytest

from torchane.errors import CompileError
from torchane.mil import ops  # noqa: F401  (fills the op table)
from torchane.mil.ir import Literal
from torchane.mil.kinds import KINDS, OpKind
from torchane.mil.types import BOOL, FP16, FP32, INT32, STRING, DType, ListType, StateType, TensorType

DTYPES = [FP16, FP16, FP16, FP32, INT32, BOOL, DType.UINT8, DType.UINT1, STRING]
WORDS = ["valid", "same", "custom", "constant", "reflect", "forward", "bidirectional", "fp16", "int8", "bilinear", "ij,jk->ik", "", "EXACT", "add", "DEFAULT", "CORNERS_WIDTH_FIRST"]  # fmt: skip


def tensor(rng: random.Random) -> TensorType:
    shape = [rng.choice([None, 0, 1, 2, 2, 3, 4, 8]) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 4, 4, 5]))]
    return TensorType(rng.choice(DTYPES), tuple(shape))


def value(annotation: Any, rng: random.Random) -> Any:
    """Something that fits an annotation of a rule, sensible or not."""
    if isinstance(annotation, UnionType):
        return value(rng.choice(get_args(annotation)), rng)
    if get_origin(annotation) is tuple:
        items = get_args(annotation)
        return tuple(value(items[0], rng) for _ in range(rng.randint(0, 5))) if items else ()
    if annotation is Literal:
        return Literal(TensorType(INT32), np.array(rng.randint(-3, 9), np.int32))
    simple = {
        int: lambda: rng.choice([-(2**31), -5, -2, -1, 0, 1, 1, 2, 2, 3, 4, 7, 2**31 - 1]),
        float: lambda: rng.choice([-1.0, 0.0, 0.5, 1.0, 2.0, float("inf"), float("nan")]),
        bool: lambda: rng.random() < 0.5,
        str: lambda: rng.choice(WORDS),
        TensorType: lambda: tensor(rng),
        StateType: lambda: StateType(tensor(rng)),
        ListType: lambda: ListType(rng.choice([tensor(rng), ListType(tensor(rng))]), rng.choice([None, 2])),
        type(None): lambda: None,
    }
    if annotation in simple:
        return simple[annotation]()
    return rng.choice([tensor(rng), [rng.randint(-1, 3) for _ in range(rng.randint(0, 3))], rng.randint(-3, 3)])


def arguments(kind: OpKind, rng: random.Random) -> dict[str, Any]:
    """Arguments of one op; tensors often share a type, so that some calls get past the first check."""
    shared, args = tensor(rng), {}
    for parameter in kind.signature.parameters.values():
        if parameter.name == "blocks" or (parameter.default is not Parameter.empty and rng.random() < 0.4):
            continue
        args[parameter.name] = value(parameter.annotation, rng)
        if isinstance(args[parameter.name], TensorType) and rng.random() < 0.5:
            args[parameter.name] = shared
    return args | ({"blocks": ()} if kind.nested else {})


def infer_many(name: str, count: int) -> int:
    """How many of `count` random calls gave types; the others must have raised CompileError."""
    rng, given = random.Random(name), 0
    for _ in range(count):
        args = arguments(KINDS[name], rng)
        try:
            types = KINDS[name].infer(args)
        except CompileError as error:
            assert str(error).startswith(name.split("_")[0])
        except Exception as error:
            raise AssertionError(f"{name}({args})") from error
        else:
            given += 1
            sizes = [size for type_ in types if isinstance(type_, TensorType) for size in type_.shape]
            assert all(size is None or (isinstance(size, int) and size >= 0) for size in sizes), (args, types)
    return given


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"const"}))
def test_a_type_rule_gives_types_or_our_error(name):
    infer_many(name, 100)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"const"}))
def test_a_type_rule_gives_types_or_our_error_many_times(name, evidence):
    evidence("calls that gave types, of 6000", infer_many(name, 6000))
