"""From MIL's protobuf messages to a Program.

Arguments and attributes are maps there, without an order: they come sorted by name, as Apple's compiler prints
them. Of a function the block of its own opset is read. Comments (`docString`) are dropped; nothing else is.
"""

from collections.abc import Iterable
from types import UnionType
from typing import get_args, get_origin

from google.protobuf.message import Message

from torchane.inspect import opsets
from torchane.inspect.proto_values import Malformed, read_type, read_value
from torchane.inspect.wire import FieldKey
from torchane.mil import ops as _ops  # noqa: F401  (fills the op table)
from torchane.mil.ir import Arg, Block, Function, Literal, Op, Program, Var
from torchane.mil.kinds import OpKind, kind_of
from torchane.mil.types import STRING, DictType, TensorType

_STRING = TensorType(STRING)
_FUNCTIONS, _ATTRIBUTES, _BLOCK_OF_OPSET, _ENTRY_VALUE = 2, 4, 3, 2
_BLOCK_OPERATIONS, _OPERATION_BLOCKS = 3, 4


class ProgramReader:
    """Reads one message. After Malformed, `field_path` leads to the part that was being read, for `wire.locate`."""

    def __init__(self, field_path: Iterable[FieldKey] = ()):
        self.field_path: list[FieldKey] = list(field_path)
        self._scope: dict[str, Var] = {}
        self._undo: list[tuple[str, Var | None]] = []  # what each definition within a block hid

    def program(self, message: Message) -> Program:
        """Raises Malformed."""
        functions = tuple(self._function(name, message.functions[name]) for name in sorted(message.functions))
        if not functions:
            raise Malformed("the program has no function.")
        attrs = {name: read_value(message.attributes[name]) for name in sorted(message.attributes)}
        info = attrs.get("buildInfo")
        pairs = _pairs(info)
        if pairs is not None:
            del attrs["buildInfo"]
        version = opsets.text_version(functions[0].opset)
        return Program(_main_first(functions), version, pairs or (), attrs)

    def _function(self, name: str, message: Message) -> Function:
        self.field_path += [(_FUNCTIONS, name), (_ENTRY_VALUE, None)]
        self._scope, self._undo = {}, []
        inputs = tuple(self._defined(port) for port in message.inputs)
        attrs = {key: read_value(message.attributes[key]) for key in sorted(message.attributes)}
        if message.opset not in message.block_specializations:
            found = ", ".join(sorted(message.block_specializations)) or "none"
            raise Malformed(f"the function {name} is of opset {message.opset!r} and has blocks for {found}.")
        self.field_path += [(_BLOCK_OF_OPSET, message.opset), (_ENTRY_VALUE, None)]
        block = message.block_specializations[message.opset]
        operations = self._operations(block)
        outputs = tuple(self._known(output) for output in block.outputs)
        del self.field_path[-4:]
        return Function(name, inputs, operations, outputs, opsets.from_protobuf(message.opset), attrs)

    def _operations(self, block: Message) -> tuple[Op, ...]:
        ops = []
        for place, operation in enumerate(block.operations):
            self.field_path.append((_BLOCK_OPERATIONS, place))
            ops.append(self._operation(operation))
            self.field_path.pop()
        return tuple(ops)

    def _operation(self, message: Message) -> Op:
        if not message.type:
            raise Malformed("an operation has no type.")
        kind = kind_of(message.type)
        args = {key: self._argument(kind, key, message.inputs[key]) for key in sorted(message.inputs)}
        attrs = {key: read_value(message.attributes[key]) for key in sorted(message.attributes)}
        blocks = tuple(self._block(place, block) for place, block in enumerate(message.blocks))
        outputs = tuple(self._defined(output) for output in message.outputs)
        if kind.name == "const" and ("val" not in attrs or len(outputs) != 1):
            raise Malformed("a const needs one result and an attribute val.")
        return Op(kind, args, outputs, attrs, blocks)

    def _argument(self, kind: OpKind, key: str, message: Message) -> Arg:
        items = tuple(self._binding(binding) for binding in message.arguments)
        if len(items) == 1 and not _takes_several(kind, key):
            return items[0]
        return items

    def _binding(self, message: Message) -> Var | Literal:
        which = message.WhichOneof("binding")
        if which is None:
            raise Malformed("an argument is neither a name nor a constant.")
        return self._known(message.name) if which == "name" else read_value(message.value)

    def _block(self, place: int, message: Message) -> Block:
        """A block within an operation: what it defines is unknown outside."""
        self.field_path.append((_OPERATION_BLOCKS, place))
        mark = len(self._undo)
        inputs = tuple(self._defined(port) for port in message.inputs)
        ops = self._operations(message)
        outputs = tuple(self._known(output) for output in message.outputs)
        for name, hidden in reversed(self._undo[mark:]):
            if hidden is None:
                self._scope.pop(name, None)
            else:
                self._scope[name] = hidden
        del self._undo[mark:]
        self.field_path.pop()
        return Block(inputs, ops, outputs)

    def _defined(self, message: Message) -> Var:
        if not message.name:
            raise Malformed("a value has no name.")
        var = Var(message.name, read_type(message.type))
        self._undo.append((var.name, self._scope.get(var.name)))
        self._scope[var.name] = var
        return var

    def _known(self, name: str) -> Var:
        if name not in self._scope:
            raise Malformed(f"the name {name!r} is not defined before this place.")
        return self._scope[name]


def _takes_several(kind: OpKind, key: str) -> bool:
    """Whether an op of the table takes a list of values there, if only of one."""
    parameter = kind.signature.parameters.get(key)
    if parameter is None or key not in kind.operands:
        return False
    annotation = parameter.annotation
    choices = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return any(get_origin(choice) is tuple for choice in choices)


def _pairs(info: Literal | None) -> tuple[tuple[str, str], ...] | None:
    """A dict from strings to strings as plain pairs; None for anything else."""
    if info is None or info.type != DictType(_STRING, _STRING) or not isinstance(info.value, tuple):
        return None
    pairs = tuple((key.value, value.value) for key, value in info.value)
    return pairs if all(isinstance(item, str) for pair in pairs for item in pair) else None


def _main_first(functions: tuple[Function, ...]) -> tuple[Function, ...]:
    return tuple(sorted(functions, key=lambda function: (function.name != "main", function.name)))
