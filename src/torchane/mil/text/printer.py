"""Prints a program as MIL text that Apple's parsers read; `parse(to_text(p)) == p`.

Arguments, attributes and functions keep the order in which the program holds them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from torchane.errors import CompileError
from torchane.mil.formats import widened
from torchane.mil.ir import DEFAULT_FUNCTION, Arg, Blob, Block, Function, Literal, Op, Program, Var
from torchane.mil.text import floats
from torchane.mil.text.scanner import NAME
from torchane.mil.text.style import KERNEL, VERSION, Style, spells_scalars
from torchane.mil.types import BOOL, STRING, DictType, DType, ListType, StateType, TensorType, TupleType, Type

_PLAIN = re.compile(r"[^\"\\\x00-\x1f\x7f\ud800-\udfff]*")
_SPECIAL = re.compile(r"[\"\\\x00-\x1f\x7f\ud800-\udfff]")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def to_text(program: Program, style: Style = KERNEL) -> str:
    """The program as text. Raises CompileError for a name that MIL text cannot hold, and for values
    that lie in memory but do not have the form that `Literal` describes."""
    if VERSION.fullmatch(program.version) is None:
        raise CompileError(f"the program's version is {program.version!r}; MIL's are numbers such as 1.3.")
    return _Printer(program, style).text()


class _Printer:
    def __init__(self, program: Program, style: Style):
        self._program = program
        self._style = style
        self._spells_scalars = spells_scalars(program)
        self._types: dict[Type, str] = {}
        self._string = self._type(TensorType(STRING))

    def text(self) -> str:
        program = self._program
        attrs = [f"{self._name(name)} = {self._literal(value)}" for name, value in program.attrs.items()]
        build_info = program.build_info
        if program.default_function is not None:
            build_info = (*build_info, (DEFAULT_FUNCTION, program.default_function))
        if build_info:
            pairs = ", ".join(f"{{{_quoted(key)}, {_quoted(value)}}}" for key, value in build_info)
            attrs.insert(0, f"buildInfo = dict<{self._string}, {self._string}>({{{pairs}}})")
        lines = [f"program({program.version})"]
        if attrs:
            lines.append(f"[{', '.join(attrs)}]")
        lines.append("{")
        for function in program.functions:
            self._function(function, lines)
        lines.append("}")
        return "\n".join(lines) + self._style.ending

    def _function(self, function: Function, lines: list[str]) -> None:
        attrs = f" [{self._attrs(function.attrs)}]" if function.attrs else ""
        name, opset = self._name(function.name), self._name(function.opset)
        lines.append(f"    func {name}<{opset}>({self._ports(function.inputs)}){attrs} {{")
        self._statements(function.ops, " " * self._style.indent, lines)
        lines.append(f"{' ' * self._style.closing}}} -> ({self._names(function.outputs)});")

    def _statements(self, ops: Iterable[Op], indent: str, lines: list[str]) -> None:
        comma, equals = self._style.comma, self._style.equals
        for op in ops:
            results = f"{self._declared(op.outputs)} = " if op.outputs else ""
            args = comma.join([f"{key}{equals}{self._arg(arg)}" for key, arg in op.args.items()])
            attrs = f"[{self._attrs(op.attrs)}]" if op.attrs else ""
            head = f"{indent}{results}{self._name(op.kind.name)}({args}){attrs}"
            if not op.blocks:
                lines.append(head + ";")
                continue
            lines.append(head)
            for block in op.blocks:
                self._block(block, indent + "    ", lines)
            lines[-1] += ";"

    def _block(self, block: Block, indent: str, lines: list[str]) -> None:
        name = self._name(block.name) if block.name else ""
        lines.append(f"{indent}{name}({self._declared(block.inputs)}) {{")
        self._statements(block.ops, indent + "    ", lines)
        lines.append(f"{indent}}} -> ({self._names(block.outputs)})")

    def _declared(self, variables: Iterable[Var]) -> str:
        return ", ".join([f"{self._type(var.type)} {self._name(var.name)}" for var in variables])

    def _ports(self, variables: Iterable[Var]) -> str:
        """The inputs of a function, whose shapes some writers space otherwise than those of statements."""
        style = self._style
        if style.port_comma == style.size_comma:
            return self._declared(variables)
        return _Printer(self._program, replace(style, size_comma=style.port_comma))._declared(variables)

    def _names(self, variables: Iterable[Var]) -> str:
        return self._style.comma.join([self._name(var.name) for var in variables])

    def _attrs(self, attrs: Mapping[str, Literal]) -> str:
        equals = self._style.attribute_equals
        return ", ".join([f"{self._name(name)}{equals}{self._literal(value)}" for name, value in attrs.items()])

    def _arg(self, arg: Arg) -> str:
        if isinstance(arg, Var):
            return self._name(arg.name)
        if isinstance(arg, tuple):
            return f"({self._style.comma.join([self._arg(item) for item in arg])})"
        return self._literal(arg)

    @staticmethod
    def _name(name: str) -> str:
        if NAME.fullmatch(name) is None:
            raise CompileError(
                f"{name!r} is not a name that MIL text can hold. Names begin with a letter or _ and go on "
                "with letters, digits and _ . $ @; rename it before printing."
            )
        return name

    # types and constants -------------------------------------------------------------------------

    def _type(self, type_: Type) -> str:
        text = self._types.get(type_)
        if text is None:
            text = self._types[type_] = self._type_text(type_)
        return text

    def _type_text(self, type_: Type) -> str:
        if isinstance(type_, TensorType):
            if self._spells_scalars and not type_.shape:
                return type_.dtype.mil_name
            sizes = self._style.size_comma.join(["?" if size is None else str(size) for size in type_.shape])
            return f"tensor<{type_.dtype.mil_name}, [{sizes}]>"
        if isinstance(type_, ListType):
            return f"list<{self._type(type_.element)}, {'?' if type_.length is None else type_.length}>"
        if isinstance(type_, TupleType):
            return f"tuple<{', '.join([self._type(item) for item in type_.items])}>"
        if isinstance(type_, DictType):
            return f"dict<{self._type(type_.key)}, {self._type(type_.value)}>"
        assert isinstance(type_, StateType)
        return f"state<{str(type_.tensor) if not type_.tensor.shape else self._type(type_.tensor)}>"

    def _literal(self, literal: Literal) -> str:
        return f"{self._type(literal.type)}({self._value(literal)})"

    def _value(self, literal: Literal) -> str:
        value, type_ = literal.value, literal.type
        if isinstance(value, str):
            return _quoted(value)
        if isinstance(value, Blob):
            path, equals = f"{self._string}({_quoted(value.path)})", self._style.attribute_equals
            return f"BLOBFILE(path{equals}{path}, offset{equals}{self._type(_OFFSET)}({value.offset}))"
        if isinstance(value, np.ndarray) and isinstance(type_, TensorType):
            return self._array(value, type_.dtype)
        if isinstance(value, tuple):
            if isinstance(type_, TensorType):
                shape = type_.shape if type_.is_fixed else (len(value),)
                return _rows([_quoted(item) for item in value], shape, self._style.item_comma)  # type: ignore[arg-type]
            if isinstance(type_, DictType):
                pairs = [f"{{{self._value(key)}, {self._value(item)}}}" for key, item in value]
                return f"{{{', '.join(pairs)}}}"
            items = ", ".join([self._value(item) for item in value])
            return f"[{items}]" if isinstance(type_, ListType) else f"({items})"
        raise CompileError(f"a {type_} cannot be written from a {type(value).__name__}.")

    def _array(self, array: np.ndarray, dtype: DType) -> str:
        if dtype.is_float:
            flat = np.ascontiguousarray(array).reshape(-1)
            with np.errstate(invalid="ignore"):  # signalling NaNs
                numbers = widened(flat, dtype)
            spelled = floats.speller(self._style.floats, dtype)
            items = [spelled(number) for number in numbers.tolist()]
            for index in np.flatnonzero(np.isnan(numbers)).tolist():
                bits = int(floats.to_bits(flat)[index])
                if not floats.is_usual_nan(bits, dtype):
                    items[index] = f"nan({bits:#x})"
        elif dtype is BOOL:
            items = ["true" if item else "false" for item in array.reshape(-1).tolist()]
        else:
            items = [str(item) for item in array.reshape(-1).tolist()]
        return _rows(items, array.shape, self._style.item_comma)


_OFFSET = TensorType(DType.UINT64)


def _rows(items: list[str], shape: tuple[int, ...], comma: str) -> str:
    """Items in row-major order as nested brackets; a scalar has none, an empty tensor one pair."""
    if not items:
        return "[]"
    for size in reversed(shape):
        items = [f"[{comma.join(items[start : start + size])}]" for start in range(0, len(items), size)]
    return items[0]


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text) is not None:
        return f'"{text}"'
    return '"' + _SPECIAL.sub(lambda match: _escaped(match.group()), text) + '"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
