"""Random programs for properties: every type, constant, attribute, block and spelling that the text can hold.

They are well formed as text and mean nothing: ops are unknown ones, arguments any values in sight.
"""

from functools import cache

import numpy as np
from hypothesis import strategies as st

from torchane.mil.ir import Blob, Block, Function, Literal, Op, Program, Var
from torchane.mil.kinds import kind_of
from torchane.mil.types import (
    BOOL,
    STRING,
    DictType,
    DType,
    ListType,
    StateType,
    TensorType,
    TupleType,
)

names = st.sampled_from(["a", "_", "val", "name", "x.y", "b_0", "Z9", "fp16", "tensor", "inf", "const", "true", "func"])
texts = st.sampled_from(["", "text", '"', "\\", "a\nb", "\t", "\x00", "\x7f", "\x9f", "];", "//", "\ud800", "é", "漢"])
sizes = st.none() | st.integers(0, 4) | st.just(2**62)
percent = st.integers(0, 99)
dtypes = st.sampled_from(list(DType))


@st.composite
def tensor_types(draw, fixed: bool = False) -> TensorType:
    shape = draw(st.lists(st.integers(0, 3) if fixed else sizes, max_size=4))
    return TensorType(draw(dtypes), tuple(shape))


@cache
def types(depth: int = 2) -> st.SearchStrategy:
    if depth == 0:
        return tensor_types()
    inner = types(depth - 1)
    return (
        tensor_types()
        | st.builds(ListType, inner, sizes)
        | st.builds(TupleType, st.lists(inner, max_size=3).map(tuple))
        | st.builds(DictType, inner, inner)
        | st.builds(StateType, tensor_types())
    )


@st.composite
def arrays(draw, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Any bit pattern: NaNs of all kinds, infinities, subnormals."""
    count = int(np.prod(shape))
    if dtype is BOOL:
        values = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        return np.array(values, np.bool_).reshape(shape)
    if dtype.bits >= 8:
        width = dtype.numpy.itemsize
        return np.frombuffer(draw(st.binary(min_size=count * width, max_size=count * width)), dtype.numpy).reshape(
            shape
        )
    low, high = (-8, 7) if dtype is DType.INT4 else (0, (1 << dtype.bits) - 1)
    values = draw(st.lists(st.integers(low, high), min_size=count, max_size=count))
    return np.array(values, dtype.numpy).reshape(shape)


@st.composite
def literals(draw, type_=None) -> Literal:
    type_ = type_ if type_ is not None else draw(value_types(1))
    if isinstance(type_, TensorType):
        if draw(percent) < 10:
            return Literal(type_, Blob(draw(texts), draw(sizes) or 0))
        if type_.dtype is STRING:
            count = int(np.prod(type_.shape))
            return Literal(type_, draw(texts) if not type_.shape else tuple(draw(st.tuples(*[texts] * count))))
        return Literal(type_, draw(arrays(type_.dtype, type_.shape)))
    if isinstance(type_, ListType):
        return Literal(type_, tuple(draw(literals(type_.element)) for _ in range(type_.length)))
    if isinstance(type_, TupleType):
        return Literal(type_, tuple(draw(literals(item)) for item in type_.items))
    count = draw(st.integers(0, 2))
    return Literal(type_, tuple((draw(literals(type_.key)), draw(literals(type_.value))) for _ in range(count)))


@cache
def value_types(depth: int = 2) -> st.SearchStrategy:
    """Types of which a constant can be given."""
    if depth == 0:
        return tensor_types(fixed=True)
    inner = value_types(depth - 1)
    return (
        tensor_types(fixed=True)
        | st.builds(ListType, inner, st.integers(0, 3))
        | st.builds(TupleType, st.lists(inner, max_size=3).map(tuple))
        | st.builds(DictType, inner, inner)
    )


attributes = st.dictionaries(names, literals(), max_size=3)
kinds = st.sampled_from(["const", "add", "conv", "concat", "my_op", "com.acme.op", "write_state"]).map(kind_of)


@st.composite
def variables(draw, taken: set[str]) -> Var:
    name = draw(names)
    while name in taken:
        name += str(len(taken))
    taken.add(name)
    return Var(name, draw(types()))


@st.composite
def bodies(draw, seen: list[Var], taken: set[str], depth: int) -> tuple[tuple[Op, ...], tuple[Var, ...]]:
    """Statements that read what is seen, and outputs among it; names defined within are new in the function."""
    seen = list(seen)
    ops = []
    for _ in range(draw(st.integers(0, 3))):
        readable = st.sampled_from(seen) if seen else st.nothing()
        item = readable | literals()
        args = draw(st.dictionaries(names, item | st.lists(item, max_size=3).map(tuple), max_size=3))
        blocks = []
        for _ in range(draw(st.integers(0, 2)) if depth else 0):
            inputs = tuple(draw(variables(taken)) for _ in range(draw(st.integers(0, 2))))
            inner, outputs = draw(bodies([*seen, *inputs], taken, depth - 1))
            blocks.append(Block(inputs, inner, outputs, draw(st.just("") | names)))
        results = tuple(draw(variables(taken)) for _ in range(draw(st.integers(0, 2))))
        ops.append(Op(draw(kinds), args, results, draw(attributes), tuple(blocks)))
        seen.extend(results)
    outputs = tuple(draw(st.lists(st.sampled_from(seen), max_size=2))) if seen else ()
    return tuple(ops), outputs


@st.composite
def functions(draw, name: str) -> Function:
    taken: set[str] = set()
    inputs = tuple(draw(variables(taken)) for _ in range(draw(st.integers(0, 3))))
    ops, outputs = draw(bodies(list(inputs), taken, 1))
    return Function(name, inputs, ops, outputs, draw(st.sampled_from(["ios15", "ios18"])), draw(attributes))


@st.composite
def programs(draw) -> Program:
    chosen = draw(st.lists(names, min_size=1, max_size=2, unique=True))
    pairs = draw(st.lists(st.tuples(texts, texts), max_size=2).map(tuple))
    attrs = draw(attributes.filter(lambda attrs: "buildInfo" not in attrs))
    version = draw(st.sampled_from(["1.0", "1.3", "2"]))
    return Program(tuple(draw(functions(name)) for name in chosen), version, pairs, attrs)
