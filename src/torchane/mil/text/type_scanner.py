"""The types of MIL text, read and remembered by their spelling.

type := fp16 | tensor<fp16, [1, ?]> | list<type, 4> | tuple<type, ...> | dict<type, type> | state<tensor>
"""

import re

from torchane.mil.text.scanner import NAME, Scanner
from torchane.mil.types import DTYPES, MAX_RANK, DictType, ListType, StateType, TensorType, TupleType, Type

_TYPE = re.compile(r"tensor<[a-z0-9]+, \[[0-9?, ]*\]>|[a-z]+[0-9]*(?![A-Za-z0-9_.$@<])")
_CONTAINERS = ("tensor", "list", "tuple", "dict", "state")

#: Sizes and offsets are below this.
TOO_LARGE = 2**63


class TypeScanner(Scanner):
    """A Scanner that also reads types. `types` holds those already read, by their usual spelling."""

    def __init__(self, text: str, path: str):
        super().__init__(text, path)
        self.types: dict[str, Type] = {}

    def at_type(self) -> bool:
        """Whether a type comes next: an element type's name or `tensor<` and its like."""
        self.space()
        word = NAME.match(self.text, self.pos)
        if word is None:
            return False
        if word.group() in DTYPES:
            return True
        return word.group() in _CONTAINERS and self.follows(word.end(), "<")

    def type(self) -> Type:
        self.space()
        match = _TYPE.match(self.text, self.pos)
        if match is None:
            return self._type()
        known = self.types.get(match.group())
        if known is not None:
            self.pos = match.end()
            return known
        type_ = self._type()
        if self.pos == match.end():
            self.types[match.group()] = type_
        return type_

    def _type(self) -> Type:
        start = self.pos
        word = self.name("a type")
        if word in DTYPES:
            return TensorType(DTYPES[word])
        if word not in _CONTAINERS:
            self.fail(f"{word!r} is not a type. Types: {', '.join(DTYPES)}, {', '.join(_CONTAINERS)}.", start)
        self.enter()
        self.expect("<", f"after {word}")
        type_ = getattr(self, f"_{word}_type")()
        self.expect(">", f"at the end of a {word} type")
        self.leave()
        return type_

    def _tensor_type(self) -> TensorType:
        start = self.pos
        word = self.name("an element type")
        if word not in DTYPES:
            self.fail(f"{word!r} is not an element type. Element types: {', '.join(DTYPES)}.", start)
        self.expect(",", "after the element type")
        self.expect("[", "before the sizes of a tensor type")
        shape: list[int | None] = []
        while not self.accept("]"):
            shape.append(self._size())
            if not self.accept(","):
                self.expect("]", "after the sizes of a tensor type")
                break
        if len(shape) > MAX_RANK:
            self.fail(f"this tensor has {len(shape)} axes; the most is {MAX_RANK}.", start)
        return TensorType(DTYPES[word], tuple(shape))

    def _size(self) -> int | None:
        """A size of a tensor or list: a whole number below 2^63 or `?`."""
        if self.accept("?"):
            return None
        start = self.pos
        digits = self.number()
        if not digits.isdigit():
            self.fail(f"a size is a whole number or ?, not {digits!r}.", start)
        if len(digits) > 19 or int(digits) >= TOO_LARGE:
            self.fail(f"the size {digits} is too large: sizes are below 2^63.", start)
        return int(digits)

    def _list_type(self) -> ListType:
        element = self.type()
        return ListType(element, self._size() if self.accept(",") else None)

    def _tuple_type(self) -> TupleType:
        items = []
        while not self.at(">"):
            items.append(self.type())
            if not self.accept(","):
                break
        return TupleType(tuple(items))

    def _dict_type(self) -> DictType:
        key = self.type()
        self.expect(",", "between the key and the value of a dict type")
        return DictType(key, self.type())

    def _state_type(self) -> StateType:
        start = self.pos
        tensor = self.type()
        if not isinstance(tensor, TensorType):
            self.fail(f"a state holds a tensor, not a {tensor}.", start)
        return StateType(tensor)
