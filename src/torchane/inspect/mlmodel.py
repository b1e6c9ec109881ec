"""Core ML's model file (`model.mlmodel`): what the model is, its ports, its metadata, and its program if it has one.

    model = mlmodel.parse(data, "model.mlmodel")
    model.program       # its weights named, not read: see mlpackage.load
Source: coremltools, mlmodel/format/Model.proto.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from torchane.errors import UsageError
from torchane.inspect import schema
from torchane.inspect.errors import FormatError
from torchane.inspect.opsets import OPSETS
from torchane.inspect.ports import ARRAY_CODES, Description, read_description
from torchane.inspect.proto_read import ProgramReader
from torchane.inspect.proto_values import Malformed
from torchane.inspect.proto_write import write_program
from torchane.inspect.wire import FieldKey, fault, locate
from torchane.mil.ir import Function, Program, Var
from torchane.mil.types import DType, StateType, TensorType

#: Ports of these types need this specification version or later (coremltools, _SPECIFICATION_VERSION_*).
_PORT_VERSIONS = {DType.FP16: 7, DType.INT8: 10}

_ML_PROGRAM = 502

#: Where the models of each kind of pipeline lie.
_PIPELINES: dict[str, tuple[FieldKey, ...]] = {
    "pipeline": ((202, None),),
    "pipelineClassifier": ((200, None), (1, None)),
    "pipelineRegressor": ((201, None), (1, None)),
}
_PIPELINE_MODELS = 1

#: What no pipeline has so many of.
_MOST_STAGES = 1000


@dataclass(frozen=True)
class MLModel:
    """One model. `kind` is the field of the file that holds it (`mlProgram`, `neuralNetwork`, ...), `size_bytes`
    what it takes there; `program` is there for an mlProgram only. `functions` describes models of several. `stages`
    are the models of a pipeline in their order, with their names; `dropped` says what of the file is not kept here."""

    specification_version: int
    kind: str
    description: Description
    functions: Mapping[str, Description]
    metadata: Mapping[str, str]
    size_bytes: int
    program: Program | None = field(default=None, compare=False)
    stages: tuple[tuple[str, "MLModel"], ...] = ()
    dropped: tuple[str, ...] = ()


def parse(data: bytes, path: str = "<model>") -> MLModel:
    """The model in the bytes of a file. Raises FormatError, which names the byte."""
    return _model(_parsed(data, path), data, path, ())


def _model(message: Message, data: bytes, path: str, field_path: tuple[FieldKey, ...]) -> MLModel:
    """The model of a message that lies in the data where the path leads."""
    kind = message.WhichOneof("Type")
    wrong = None
    if kind is None:
        wrong = "this is no Core ML model: it holds none of the kinds of model."
    elif message.specificationVersion < 1:
        wrong = "this is no Core ML model: it says no specification version."
    if wrong is not None:
        raise FormatError(wrong, locate(data, field_path) if field_path else len(data), path)
    description = message.description
    return MLModel(
        specification_version=message.specificationVersion,
        kind=kind,
        description=read_description(description),
        functions={function.name: read_description(function) for function in description.functions},
        metadata=_metadata(description.metadata),
        size_bytes=message.ByteSize() if field_path else len(data),
        program=_program(message, data, path, field_path) if kind == "mlProgram" else None,
        stages=tuple(_stages(message, kind, data, path, field_path)),
        dropped=tuple(_dropped(message, kind)),
    )


def _stages(message: Message, kind: str, data: bytes, path: str, field_path: tuple[FieldKey, ...]) -> Iterator[tuple[str, MLModel]]:
    if kind not in _PIPELINES:
        return
    pipeline = message.pipeline if kind == "pipeline" else getattr(message, kind).pipeline
    if len(pipeline.models) > _MOST_STAGES:
        raise FormatError(
            f"a pipeline has {len(pipeline.models):,} models; the most that is read is {_MOST_STAGES:,}.",
            locate(data, (*field_path, *_PIPELINES[kind])), path,
        )  # fmt: skip
    for place, model in enumerate(pipeline.models):
        name = pipeline.names[place] if place < len(pipeline.names) else ""
        yield name, _model(model, data, path, (*field_path, *_PIPELINES[kind], (_PIPELINE_MODELS, place)))


def _dropped(message: Message, kind: str) -> Iterator[str]:
    """What of a model is not read."""
    for part in (message, message.description):
        unknown = sorted(set(_unknown_fields(part)))
        if unknown:
            yield f"fields of a later version of the format, by number: {', '.join(unknown)}"
    if kind != "mlProgram":
        return
    if message.mlProgram.docString:
        yield f"the program's comment, {len(message.mlProgram.docString):,} characters"
    for name in sorted(message.mlProgram.functions):
        function = message.mlProgram.functions[name]
        others = sorted(set(function.block_specializations) - {function.opset})
        if others:
            yield f"function {name}: its blocks for {', '.join(others)} (it is of {function.opset})"


def _parsed(data: bytes, path: str) -> Message:
    try:
        return schema.Model.FromString(data)
    except DecodeError:
        offset, reason = fault(data, schema.Model.DESCRIPTOR)
        raise FormatError(f"this is no Core ML model: {reason}", offset, path) from None


def _unknown_fields(message: Message) -> Iterator[str]:
    """The fields that our table lacks, with the message that has them; the whole of a description, of others the top."""
    for found in UnknownFieldSet(message):
        yield f"{message.DESCRIPTOR.name} {found.field_number}"
    if message.DESCRIPTOR is schema.Model.DESCRIPTOR:
        return
    for field_, value in message.ListFields():
        if field_.message_type is not None and not field_.message_type.GetOptions().map_entry:
            for inner in value if field_.is_repeated else (value,):
                yield from _unknown_fields(inner)


def _program(message: Message, data: bytes, path: str, field_path: tuple[FieldKey, ...]) -> Program:
    reader = ProgramReader([*field_path, (_ML_PROGRAM, None)])
    try:
        program = reader.program(message.mlProgram)
    except Malformed as error:
        raise FormatError(str(error), locate(data, reader.field_path), path) from None
    default = message.description.defaultFunctionName
    usual = {"", "main"} if len(program.functions) > 1 else {"", program.functions[0].name}
    return program if default in usual else replace(program, default_function=default)


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
        description.defaultFunctionName = _default_function(program)
    _write_metadata(metadata or {}, description.metadata)
    write_program(program, message.mlProgram)
    return message.SerializeToString(deterministic=True)


def _default_function(program: Program) -> str:
    """Core ML wants one: the program's own, `main`, or the first."""
    names = [function.name for function in program.functions]
    default = program.default_function
    if default is not None and default not in names and len(names) > 1:
        raise UsageError(f"the default function {default!r} is none of the program's: {', '.join(names)}.")
    return next((name for name in (default, "main") if name in names), names[0])


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
    if not isinstance(type_, TensorType) or type_.dtype not in ARRAY_CODES or not type_.rank:
        raise UsageError(
            f"{function.name}: the port {var.name} is a {var.type}. Core ML's ports are tensors of one axis or more, "
            f"of {', '.join(dtype.mil_name for dtype in ARRAY_CODES)}; cast it or leave it out of the signature."
        )
    message.dataType = ARRAY_CODES[type_.dtype]
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
