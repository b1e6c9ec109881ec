"""Control flow and lists. The blocks of cond and while_loop see every value defined around them.

Source: coremltools, mil/ops/defs/iOS15/control_flow.py. A list is a tuple of tensors, never
changed in place; a place that was never written holds zeros, or None where its shape is not known yet.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from torchane.errors import CompileError
from torchane.mil.ir import Block
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import Sizes, fits, require_integer, require_shape
from torchane.mil.types import BOOL, DTYPES, INT32, ListType, TensorType, Type

Run = Callable[..., tuple[Any, ...]]
List = tuple[np.ndarray | None, ...]

cond = OpKind("cond", operands=("pred",), nested=True)


def _agree(a: Type, b: Type) -> bool:
    """Equal types, as far as sizes and lengths are known."""
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        return a.dtype == b.dtype and fits(a.shape, b.shape)
    if isinstance(a, ListType) and isinstance(b, ListType):
        return _agree(a.element, b.element)
    return a == b


def _common(a: Type, b: Type) -> Type:
    """The type that covers both: a size stays known where both say it."""
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        return TensorType(a.dtype, tuple(x if x == y else None for x, y in zip(a.shape, b.shape)))
    return a


def _require_pred(kind: str, pred: TensorType) -> None:
    if pred.dtype != BOOL or not fits(pred.shape, (1,) * pred.rank):
        raise CompileError(f"{kind}: the condition is {pred} and must be one bool.")


@cond.infers
def _(pred: TensorType, blocks: tuple[Block, ...]) -> tuple[Type, ...]:
    """The results of the first block if pred, else of the second."""
    _require_pred("cond", pred)
    if len(blocks) != 2 or len(blocks[0].outputs) != len(blocks[1].outputs):
        raise CompileError("cond: it needs two blocks with as many results as each other.")
    for a, b in zip(blocks[0].outputs, blocks[1].outputs):
        if not _agree(a.type, b.type):
            raise CompileError(f"cond: one block gives {a.name} {a.type} where the other gives {b.name} {b.type}.")
    return tuple(_common(a.type, b.type) for a, b in zip(blocks[0].outputs, blocks[1].outputs))


@cond.evaluates
def _(pred: np.ndarray, blocks: tuple[Run, Run]) -> tuple[Any, ...]:
    return blocks[0]() if pred.all() else blocks[1]()


while_loop = OpKind("while_loop", operands=("loop_vars",), nested=True)


@while_loop.infers
def _(loop_vars: tuple[Type, ...], blocks: tuple[Block, ...]) -> tuple[Type, ...]:
    """The second block maps the loop_vars to their next values for as long as the first one says so."""
    if len(blocks) != 2 or len(blocks[0].outputs) != 1:
        raise CompileError("while_loop: it needs two blocks, a condition with one result and a body.")
    _require_pred("while_loop", blocks[0].outputs[0].type)  # type: ignore[arg-type]
    for block, values in ((blocks[0], blocks[0].inputs), (blocks[1], blocks[1].inputs), (blocks[1], blocks[1].outputs)):
        if len(values) != len(loop_vars) or not all(_agree(var.type, type_) for var, type_ in zip(values, loop_vars)):
            shown = ", ".join(f"{var.name} {var.type}" for var in values)
            raise CompileError(
                f"while_loop: block {block.name or '(unnamed)'} has ({shown}) where the loop_vars are "
                f"({', '.join(map(str, loop_vars))})."
            )
    return tuple(_common(var.type, type_) for var, type_ in zip(blocks[1].outputs, loop_vars))


@while_loop.evaluates
def _(loop_vars: tuple[Any, ...], blocks: tuple[Run, Run]) -> tuple[Any, ...]:
    condition, body = blocks
    while condition(*loop_vars)[0].all():
        loop_vars = body(*loop_vars)
    return loop_vars


make_list = OpKind("make_list", operands=(), dynamic=("init_length",))


@make_list.infers
def _(
    elem_shape: tuple[int | str, ...],
    init_length: int | TensorType = 1,
    dynamic_length: bool = True,
    dtype: str = "fp32",
) -> ListType:
    """A list of init_length empty places for tensors of one type, which grows if dynamic_length. A size that is
    given as a string is a name for an unknown one."""
    if dtype not in DTYPES:
        raise CompileError(f"make_list: dtype is {dtype!r}. Known: {', '.join(DTYPES)}.")
    length = None if dynamic_length or isinstance(init_length, TensorType) else init_length
    shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in elem_shape)
    return ListType(TensorType(DTYPES[dtype], shape), length)


@make_list.evaluates
def _(
    elem_shape: tuple[int | str, ...], init_length: int = 1, dynamic_length: bool = True, dtype: str = "fp32"
) -> List:
    known = all(isinstance(size, int) and size >= 0 for size in elem_shape)
    return ((np.zeros(elem_shape, DTYPES[dtype].numpy) if known else None,) * init_length,)


list_length = OpKind("list_length", operands=("ls",))


@list_length.infers
def _(ls: ListType) -> TensorType:
    return TensorType(INT32)


@list_length.evaluates
def _(ls: List) -> np.ndarray:
    return np.array(len(ls), np.int32)


def _element(kind: str, ls: ListType) -> TensorType:
    if not isinstance(ls.element, TensorType):
        raise CompileError(f"{kind}: ls is {ls} and must hold tensors.")
    return ls.element


def _require_element(kind: str, ls: ListType, value: TensorType) -> None:
    if not _agree(_element(kind, ls), value):
        raise CompileError(f"{kind}: ls is {ls} and the value is {value}; it must be of the list's element type.")


list_write = OpKind("list_write", operands=("ls", "index", "value"))


@list_write.infers
def _(ls: ListType, index: TensorType, value: TensorType) -> ListType:
    """The list with another value at index; past its end it grows."""
    require_integer("list_write", index=index)
    _require_element("list_write", ls, value)
    return ls


@list_write.evaluates
def _(ls: List, index: np.ndarray, value: np.ndarray) -> List:
    return (_written(ls, int(index), value),)


def _written(ls: List, index: int, value: np.ndarray) -> List:
    places = list(ls) + [np.zeros_like(value)] * (index + 1 - len(ls))
    places[index] = value
    return tuple(places)


list_read = OpKind("list_read", operands=("ls", "index"))


@list_read.infers
def _(ls: ListType, index: TensorType) -> TensorType:
    require_integer("list_read", index=index)
    return _element("list_read", ls)


@list_read.evaluates
def _(ls: List, index: np.ndarray) -> np.ndarray:
    return _read("list_read", ls, int(index))


def _read(kind: str, ls: List, index: int) -> np.ndarray:
    if not -len(ls) <= index < len(ls) or ls[index] is None:
        raise CompileError(f"{kind}: there is nothing at place {index} of a list of {len(ls)}.")
    return ls[index]  # type: ignore[return-value]


list_gather = OpKind("list_gather", operands=("ls", "indices"))


@list_gather.infers
def _(ls: ListType, indices: TensorType) -> TensorType:
    """The values at the indices (K,), stacked along a new first axis."""
    require_integer("list_gather", indices=indices)
    require_shape("list_gather", (None,), indices=indices)
    element = _element("list_gather", ls)
    shape: Sizes = (*indices.shape, *element.shape)
    return TensorType(element.dtype, shape)


@list_gather.evaluates
def _(ls: List, indices: np.ndarray) -> np.ndarray:
    return np.stack([_read("list_gather", ls, int(index)) for index in indices])


list_scatter = OpKind("list_scatter", operands=("ls", "indices", "value"))


@list_scatter.infers
def _(ls: ListType, indices: TensorType, value: TensorType) -> ListType:
    """The list with value[i] at indices[i]."""
    require_integer("list_scatter", indices=indices)
    require_shape("list_scatter", value.shape[:1] or (1,), indices=indices)
    _require_element("list_scatter", ls, TensorType(value.dtype, value.shape[1:]))
    return ls


@list_scatter.evaluates
def _(ls: List, indices: np.ndarray, value: np.ndarray) -> List:
    for index, piece in zip(indices, value):
        ls = _written(ls, int(index), piece)
    return (ls,)
