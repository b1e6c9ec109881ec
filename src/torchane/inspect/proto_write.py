"""From a Program to MIL's protobuf messages.

Constants stay where the program has them, in `const` statements or as arguments; Core ML's own files have only the
former (`apart.constants_apart`).
"""

from collections.abc import Iterable, Mapping

from google.protobuf.message import Message

from torchane.inspect import opsets, schema
from torchane.inspect.proto_values import write_type, write_value
from torchane.mil.ir import Literal, Op, Program, Var
from torchane.mil.types import STRING, DictType, TensorType

_STRING = TensorType(STRING)

#: The version of the message format; it is 1 whatever version the text would have.
_VERSION = 1


def write_program(program: Program, message: Message) -> None:
    """Fills a Program message."""
    message.version = _VERSION
    attrs = dict(program.attrs)
    if program.build_info:
        pairs = tuple((Literal(_STRING, key), Literal(_STRING, value)) for key, value in program.build_info)
        attrs["buildInfo"] = Literal(DictType(_STRING, _STRING), pairs)
    _write_attributes(attrs, message.attributes)
    for function in program.functions:
        written = message.functions[function.name]
        written.opset = opsets.to_protobuf(function.opset)
        _write_attributes(function.attrs, written.attributes)
        _write_ports(function.inputs, written.inputs)
        _write_block(function.ops, function.outputs, written.block_specializations[written.opset])


def _write_block(ops: Iterable[Op], outputs: Iterable[Var], message: Message) -> None:
    for op in ops:
        _write_op(op, message.operations.add())
    message.outputs.extend(var.name for var in outputs)


def _write_op(op: Op, message: schema.Operation) -> None:
    message.type = op.kind.name
    for key, arg in op.args.items():
        held = message.inputs[key].arguments
        for item in arg if isinstance(arg, tuple) else (arg,):
            if isinstance(item, Var):
                held.add().name = item.name
            else:
                write_value(item, held.add().value)
    _write_attributes(op.attrs, message.attributes)
    _write_ports(op.outputs, message.outputs)
    for block in op.blocks:
        written = message.blocks.add()
        _write_ports(block.inputs, written.inputs)
        _write_block(block.ops, block.outputs, written)


def _write_attributes(attrs: Mapping[str, Literal], message: Message) -> None:
    for key, value in attrs.items():
        write_value(value, message[key])


def _write_ports(variables: Iterable[Var], message: Message) -> None:
    for var in variables:
        port = message.add()
        port.name = var.name
        write_type(var.type, port.type)
