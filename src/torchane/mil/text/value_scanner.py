"""The constants of MIL text.

    constant := type(value) | value
    value    := number | true | "text" | [value, ...] | (value, ...) | {{key, value}, ...}
              | BLOBFILE(path = string("..."), offset = uint64(64))

The type decides how its value is read. A bare value, which some writers put as an argument, becomes
bool, int32, string, fp32 or a vector of those. A constant is read once per spelling: programs repeat them.
"""

import math
import re
from collections.abc import Callable

import numpy as np

from torchane.mil.formats import narrowed
from torchane.mil.ir import Blob, Literal
from torchane.mil.text import floats
from torchane.mil.text.scanner import NAME
from torchane.mil.text.type_scanner import TOO_LARGE, TypeScanner
from torchane.mil.types import (
    BOOL,
    FP32,
    INT32,
    STRING,
    DictType,
    DType,
    ListType,
    TensorType,
    TupleType,
    Type,
)

_STRING_TYPE = r"(?:string|tensor<string, \[\]>)"
_BLOB = re.compile(
    rf'BLOBFILE\(path = {_STRING_TYPE}\("([^"\\\n]*)"\), offset = (?:uint64|tensor<uint64, \[\]>)\((\d{{1,19}})\)\)'
)
_FLAT = re.compile(r'\[([^\[\](){}"/]*)\]')
_SHORT = re.compile(
    r"(?:tensor<[a-z0-9]+, \[[0-9?, ]{0,40}\]>|[a-z]+[0-9]*)"
    r'\((?:[-+.0-9a-z]{1,40}|"[^"\\\n]{0,40}"|\[[-0-9a-z, ]{0,80}\])\)'
)
_STRING_VECTOR = re.compile(r'\[\s*"')


class ValueScanner(TypeScanner):
    """A TypeScanner that also reads constants."""

    def __init__(self, text: str, path: str):
        super().__init__(text, path)
        self._literals: dict[str, Literal] = {}

    def literal(self) -> Literal:
        """`type(value)`, or a bare value."""
        self.space()
        short = _SHORT.match(self.text, self.pos)
        if short is not None and (known := self._literals.get(short.group())) is not None:
            self.pos = short.end()
            return known
        if not self.at_type():
            return self._bare()
        type_ = self.type()
        self.expect("(", f"before the value of a {type_}")
        found = self.value(type_)
        self.expect(")", f"after the value of a {type_}")
        if short is not None and self.pos == short.end():
            self._literals[short.group()] = found
        return found

    def value(self, type_: Type) -> Literal:
        """A value of this type, without the type's name and brackets around it."""
        self.space()
        if self.text.startswith("BLOBFILE", self.pos):
            return Literal(type_, self._blob())
        if isinstance(type_, TensorType):
            return self._tensor(type_)
        self.enter()
        if isinstance(type_, ListType):
            items = self._list(type_)
        elif isinstance(type_, TupleType):
            items = self._tuple(type_)
        elif isinstance(type_, DictType):
            items = self._dict(type_)
        else:
            self.fail(f"a {type_} has no constant value.")
        self.leave()
        return Literal(type_, items)

    def _list(self, type_: ListType) -> tuple[Literal, ...]:
        start = self.pos
        items = self._items("[", "]", lambda: self._element(type_.element))
        if type_.length is not None and type_.length != len(items):
            self.fail(f"{type_} holds {type_.length} values and {len(items)} are given.", start)
        return tuple(items)

    def _tuple(self, type_: TupleType) -> tuple[Literal, ...]:
        start = self.pos
        if self.at(")"):  # `tuple<...>()`: the value is left out
            return ()
        rest = iter(type_.items)

        def item() -> Literal:
            part = next(rest, None)
            if part is None:
                self.fail(f"{type_} holds {len(type_.items)} values and more are given.")
            return self._element(part)

        items = self._items("(", ")", item)
        if items and len(items) != len(type_.items):
            self.fail(f"{type_} holds {len(type_.items)} values and {len(items)} are given.", start)
        return tuple(items)

    def _dict(self, type_: DictType) -> tuple[tuple[Literal, Literal], ...]:
        if self.at(")"):
            return ()

        def pair() -> tuple[Literal, Literal]:
            self.expect("{", "before a key")
            key = self._element(type_.key)
            self.expect(",", "between a key and its value")
            value = self._element(type_.value)
            self.expect("}", "after a value")
            return key, value

        # One emitter leaves out the outer braces: dict<string, string>({"a", "b"}, {"c", "d"}).
        start = self.pos
        self.expect("{", "before the pairs of a dict")
        bare = not self.at("{") and not self.at("}")
        self.pos = start
        if not bare:
            return tuple(self._items("{", "}", pair))
        pairs = [pair()]
        while self.accept(","):
            pairs.append(pair())
        return tuple(pairs)

    def _items(self, opening: str, closing: str, read: Callable) -> list:
        """`opening item, item closing`; a comma may end the last item."""
        self.expect(opening, "before the values")
        items = []
        while not self.accept(closing):
            items.append(read())
            if not self.accept(","):
                self.expect(closing, "after the values")
                break
        return items

    def _element(self, type_: Type) -> Literal:
        """A value within a container; its type may be written out once more."""
        if not self.at_type():
            return self.value(type_)
        start = self.pos
        found = self.literal()
        if found.type != type_:
            self.fail(f"expected a {type_} and found a {found.type}.", start)
        return found

    def _blob(self) -> Blob:
        match = _BLOB.match(self.text, self.pos)
        if match is not None and int(match.group(2)) < TOO_LARGE:
            self.pos = match.end()
            return Blob(match.group(1), int(match.group(2)))
        self.pos += len("BLOBFILE")
        start = self.pos
        self.expect("(", "after BLOBFILE")
        path: object = None
        offset: object = None
        while not self.accept(")"):
            word = self.name("path or offset")
            self.expect("=", f"after {word}")
            value = self.literal().python()
            if word == "path" and path is None and isinstance(value, str):
                path = value
            elif word == "offset" and offset is None and isinstance(value, int) and 0 <= value < TOO_LARGE:
                offset = value
            else:
                self.fail("BLOBFILE takes path, a string, and offset, a whole number of bytes.", start)
            if not self.accept(","):
                self.expect(")", "at the end of BLOBFILE")
                break
        if not isinstance(path, str) or not isinstance(offset, int):
            self.fail("BLOBFILE needs both path and offset.", start)
        return Blob(path, offset)

    def _tensor(self, type_: TensorType) -> Literal:
        if type_.rank == 0 and not self.at("["):
            return Literal(type_, self._scalar(type_.dtype))
        start = self.pos
        items, shape = self._numbers(type_.dtype) if type_.dtype is not STRING else self._strings()
        declared = type_.shape
        fits = len(shape) == len(declared) and all(b in (None, a) for a, b in zip(shape, declared))
        if not fits and len(shape) == 1 and type_.is_fixed and math.prod(declared) == len(items):
            # Written flat. An empty tensor's other sizes may be any, and NumPy's are bounded.
            shape, fits = declared, math.prod(size or 1 for size in declared) < TOO_LARGE
        if not fits:
            self.fail(f"{type_} is given {len(items):,} values in the shape {list(shape)}.", start)
        if type_.dtype is STRING:
            return Literal(type_, tuple(items))
        return Literal(type_, items.reshape(shape))

    def _scalar(self, dtype: DType) -> object:
        start = self.pos
        if dtype is STRING:
            return self.string()
        if dtype is BOOL:
            word = self._word_or_number()
            if word not in _TRUTH:
                self.fail(f"a bool is true or false, not {word!r}.", start)
            return np.array(_TRUTH[word])
        spelling = self.number()
        return self._array([spelling], dtype, [start]).reshape(())

    def _word_or_number(self) -> str:
        self.space()
        match = NAME.match(self.text, self.pos)
        return self.name("a value") if match else self.number()

    def _strings(self) -> tuple[list[str], tuple[int, ...]]:
        """A vector of strings (deeper nesting is flattened, row-major)."""
        items: list[str] = []
        shape = self._nested(lambda: items.append(self.string()))
        return items, shape

    def _numbers(self, dtype: DType) -> tuple[np.ndarray, tuple[int, ...]]:
        """The numbers of a possibly nested `[...]`, flat, and the shape in which they stand."""
        self.space()
        spellings, end = self._flat()
        array = None if spellings is None else _converted(spellings, dtype)
        if array is not None:
            self.pos = end
            return array, array.shape
        found: list[str] = []
        places: list[int] = []

        def one() -> None:
            self.space()
            places.append(self.pos)
            found.append(self._word_or_number() if dtype is BOOL else self.number())

        shape = self._nested(one)
        return self._array(found, dtype, places), shape

    def _flat(self) -> tuple[list[str] | None, int]:
        """The spellings in the `[...]` that comes next, and where it ends; None where it is no plain vector."""
        flat = _FLAT.match(self.text, self.pos)
        if flat is None or not flat.group(1).isascii() or "_" in flat.group(1):  # int() and float() take more than MIL
            return None, self.pos
        return (flat.group(1).split(",") if flat.group(1).strip() else []), flat.end()

    def _nested(self, one: Callable[[], None]) -> tuple[int, ...]:
        """Reads `[...]`, calling `one` at each leaf; the shape. Raises where rows differ in length."""
        start = self.pos
        self.enter()
        self.expect("[", "before the values of a tensor")
        inner: tuple[int, ...] | None = None
        count = 0
        while not self.accept("]"):
            if self.at("["):
                shape = self._nested(one)
            else:
                one()
                shape = ()
            if inner is not None and shape != inner:
                self.fail(f"the rows of this tensor differ: {list(inner)} and {list(shape)}.", start)
            inner = shape
            count += 1
            if not self.accept(","):
                self.expect("]", "after the values of a tensor")
                break
        self.leave()
        return (count, *(inner or ()))

    def _array(self, spellings: list[str], dtype: DType, places: list[int]) -> np.ndarray:
        """The numbers as `dtype`; a misfit is reported at its own place."""
        array = _converted(spellings, dtype)
        if array is not None:
            return array
        for spelling, place in zip(spellings, places, strict=True):
            if _converted([spelling], dtype) is None:
                self.fail(f"{spelling!r} is not a value of {dtype.mil_name}.", place)
        raise AssertionError("each value fits and together they do not")

    def _bare(self) -> Literal:
        """A value without a type: some writers put `keep_dims = true` or `dtype = "fp16"`."""
        start = self.pos
        if self.at('"'):
            return Literal(TensorType(STRING), self.string())
        if self.at("["):
            return self._bare_vector()
        word = self._word_or_number()
        if word in ("true", "false"):
            return Literal(TensorType(BOOL), np.array(word == "true"))
        for dtype in (INT32, FP32):
            array = _converted([word], dtype)
            if array is not None:
                return Literal(TensorType(dtype), array.reshape(()))
        self.fail(f"{word!r} is not a value.", start)

    def _bare_vector(self) -> Literal:
        start = self.pos
        if _STRING_VECTOR.match(self.text, start):
            items, shape = self._strings()
            return Literal(TensorType(STRING, shape), tuple(items))
        spellings, end = self._flat()
        for dtype in (INT32, FP32, BOOL):
            array = None if spellings is None else _converted(spellings, dtype)
            if array is not None:
                self.pos = end
                return Literal(TensorType(dtype, array.shape), array)
        self.fail("a vector without a type holds only whole numbers, only bools, or only numbers.", start)


_TRUTH = {"true": True, "false": False}


def _converted(spellings: list[str], dtype: DType) -> np.ndarray | None:
    """The numbers as a vector of `dtype`, or None where one does not fit."""
    try:
        if dtype is BOOL:
            return np.array([_TRUTH[spelling.strip()] for spelling in spellings], dtype=np.bool_)
        if dtype.is_float:
            return _converted_floats(spellings, dtype)
        values = [int(s, 16) if "x" in s else int(s) for s in spellings]
    except (KeyError, ValueError):
        return None
    signed = not dtype.mil_name.startswith("u")
    low, high = (-(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1) if signed else (0, (1 << dtype.bits) - 1)
    if values and not low <= min(values) <= max(values) <= high:
        return None
    return np.array(values, dtype=dtype.numpy)


def _converted_floats(spellings: list[str], dtype: DType) -> np.ndarray:
    payloads = {i: bits for i, s in enumerate(spellings) if "(" in s and (bits := floats.nan_bits(s)) is not None}
    plain = ["nan" if i in payloads else s for i, s in enumerate(spellings)] if payloads else spellings
    array = narrowed(np.array([floats.from_text(s) for s in plain], dtype=np.float64), dtype)
    for index, bits in payloads.items():
        if not floats.is_nan(bits, dtype):
            raise ValueError(f"{bits:#x} is no NaN of {dtype.mil_name}")
        floats.to_bits(array)[index] = bits
    return array
