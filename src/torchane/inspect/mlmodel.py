"""Core ML's model file (`model.mlmodel`): what the model is, its ports, its metadata, and its program if it has one.

    model = mlmodel.parse(data, "model.mlmodel")
    model.program       # its weights named, not read: see mlpackage.load
Source: coremltools, mlmodel/format/Model.proto.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError, Message

from torchane.errors import UsageError
from torchane.inspect import schema
from torchane.inspect.errors import FormatError
from torchane.inspect.opsets import OPSETS
from torchane.inspect.proto_read import ProgramReader
from torchane.inspect.proto_values import Malformed
from torchane.inspect.proto_write import write_program
from torchane.inspect.wire import fault, locate
from torchane.mil.ir import Function, Program, Var
from torchane.mil.types import DType, StateType, TensorType

#: FeatureTypes.proto, enum ArrayDataType.
_ARRAY_CODES = {
    DType.FP32: 65568, DType.FP64: 65600, DType.INT32: 131104, DType.INT8: 131080, DType.FP16: 65552,
}  # fmt: skip
_ARRAY_DTYPES = {code: dtype for dtype, code in _ARRAY_CODES.items()}

#: Ports of these types need this specification version or later (coremltools, _SPECIFICATION_VERSION_*).
_PORT_VERSIONS = {DType.FP16: 7, DType.INT8: 10}

_ML_PROGRAM = 502


@dataclass(frozen=True)
class Port:
    """What the model's description says of one input, output or state; `shapes` describes flexible ones."""

    name: str
    kind: str
    dtype: DType | None = None
    shape: tuple[int, ...] = ()
    shapes: str = ""
    is_optional: bool = False

    def __str__(self) -> str:
        if self.dtype is None:
            return self.kind
        return f"{self.dtype.mil_name} [{', '.join(map(str, self.shape))}]" + (
            f" ({self.shapes})" if self.shapes else ""
        )


@dataclass(frozen=True)
class Description:
    """Inputs, outputs and states as Core ML shows them to an app."""

    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    states: tuple[Port, ...] = ()


@dataclass(frozen=True)
class MLModel:
    """One model. `kind` is the field of the file that holds it (`mlProgram`, `neuralNetwork`, ...), `size_bytes`
    what it takes there; `program` is there for an mlProgram only. `functions` describes models of several."""

    specification_version: int
    kind: str
    description: Description
    functions: Mapping[str, Description]
    metadata: Mapping[str, str]
    size_bytes: int
    program: Program | None = field(default=None, compare=False)


def parse(data: bytes, path: str = "<model>") -> MLModel:
    """The model in the bytes of a file. Raises FormatError, which names the byte."""
    message = _parsed(data, path)
    kind = message.WhichOneof("Type")
    if kind is None:
        raise FormatError("this is no Core ML model: it holds none of the kinds of model.", len(data), path)
    if message.specificationVersion < 1:
        raise FormatError("this is no Core ML model: it says no specification version.", len(data), path)
    description = message.description
    return MLModel(
        specification_version=message.specificationVersion,
        kind=kind,
        description=_description(description),
        functions={function.name: _description(function) for function in description.functions},
        metadata=_metadata(description.metadata),
        size_bytes=len(data),
        program=_program(message.mlProgram, data, path) if kind == "mlProgram" else None,
    )


def _parsed(data: bytes, path: str) -> Message:
    try:
        return schema.Model.FromString(data)
    except DecodeError:
        offset, reason = fault(data, schema.Model.DESCRIPTOR)
        raise FormatError(f"this is no Core ML model: {reason}", offset, path) from None


def _program(message: Message, data: bytes, path: str) -> Program:
    reader = ProgramReader([(_ML_PROGRAM, None)])
    try:
        return reader.program(message)
    except Malformed as error:
        raise FormatError(str(error), locate(data, reader.steps), path) from None


def _description(message: Message) -> Description:
    return Description(
        tuple(map(_port, message.input)), tuple(map(_port, message.output)), tuple(map(_port, message.state))
    )


def _port(message: Message) -> Port:
    type_ = message.type
    kind = (type_.WhichOneof("Type") or "untyped").removesuffix("Type")
    array = type_.multiArrayType if kind == "multiArray" else type_.stateType.arrayType if kind == "state" else None
    if array is None:
        size = f" {type_.imageType.width} x {type_.imageType.height}" if kind == "image" else ""
        return Port(message.name, kind + size, is_optional=type_.isOptional)
    return Port(
        message.name, kind, _ARRAY_DTYPES.get(array.dataType), tuple(array.shape), _flexible(array), type_.isOptional
    )


def _flexible(array: Message) -> str:
    which = array.WhichOneof("ShapeFlexibility")
    if which == "enumeratedShapes":
        return f"{len(array.enumeratedShapes.shapes)} shapes"
    if which == "shapeRange":
        ranges = (
            f"{size.lowerBound}..{'?' if size.upperBound < 0 else size.upperBound}"
            for size in array.shapeRange.sizeRanges
        )
        return f"any of {', '.join(ranges)}"
    return ""


def _metadata(message: Message) -> dict[str, str]:
    named = {
        "description": message.shortDescription,
        "version": message.versionString,
        "author": message.author,
        "license": message.license,
    }
    return {key: value for key, value in named.items() if value} | dict(sorted(message.userDefined.items()))


def to_bytes(program: Program, metadata: Mapping[str, str] | None = None) -> bytes:
    """The model file of a program whose large constants lie in weight files (`mil.save.extract_blobs`).

    metadata: `description`, `version`, `author` and `license` have places of their own, other keys are the user's.
    Equal programs give equal bytes. Raises UsageError for ports that Core ML cannot have.
    """
    message = schema.Model()
    message.specificationVersion = _specification_version(program)
    description = message.description
    if len(program.functions) == 1 and program.main.name == "main":
        _describe(program.main, description)
    else:
        for function in program.functions:
            described = description.functions.add()
            described.name = function.name
            _describe(function, described)
        description.defaultFunctionName = program.functions[0].name
    _write_metadata(metadata or {}, description.metadata)
    write_program(program, message.mlProgram)
    return message.SerializeToString(deterministic=True)


def _specification_version(program: Program) -> int:
    """The first version that has the opsets and the ports of the program."""
    versions = []
    for function in program.functions:
        if function.opset not in OPSETS:
            known = ", ".join(OPSETS)
            raise UsageError(f"{function.name}: Core ML has no opset {function.opset!r}; there are {known}.")
        versions.append(OPSETS[function.opset][1])
        ports = (*function.inputs, *function.outputs)
        versions += [_PORT_VERSIONS.get(var.type.dtype, 0) for var in ports if isinstance(var.type, TensorType)]
    return max(versions)


def _describe(function: Function, message: Message) -> None:
    """Fills a description with the ports of a function."""
    states = [var for var in function.inputs if isinstance(var.type, StateType)]
    groups: Iterable[tuple[Callable[[], Message], list[Var]]] = (
        (message.input.add, [var for var in function.inputs if var not in states]),
        (message.output.add, list(function.outputs)),
        (message.state.add, states),
    )
    for add, variables in groups:
        for var in variables:
            port = add()
            port.name = var.name
            of = port.type.stateType.arrayType if isinstance(var.type, StateType) else port.type.multiArrayType
            _describe_array(function, var, of)


def _describe_array(function: Function, var: Var, message: Message) -> None:
    type_ = var.type.tensor if isinstance(var.type, StateType) else var.type
    if not isinstance(type_, TensorType) or type_.dtype not in _ARRAY_CODES or not type_.rank:
        raise UsageError(
            f"{function.name}: the port {var.name} is a {var.type}. Core ML's ports are tensors of one axis or more, "
            f"of {', '.join(dtype.mil_name for dtype in _ARRAY_CODES)}; cast it or leave it out of the signature."
        )
    message.dataType = _ARRAY_CODES[type_.dtype]
    message.shape.extend(1 if size is None else size for size in type_.shape)
    if not type_.is_fixed:
        for size in type_.shape:
            bounds = message.shapeRange.sizeRanges.add()
            bounds.lowerBound, bounds.upperBound = (1, -1) if size is None else (size, size)


def _write_metadata(metadata: Mapping[str, str], message: Message) -> None:
    places = {"description": "shortDescription", "version": "versionString", "author": "author", "license": "license"}
    for key, value in metadata.items():
        if key in places:
            setattr(message, places[key], value)
        else:
            message.userDefined[key] = value
