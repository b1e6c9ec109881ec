"""Inputs, outputs and states of a model as Core ML shows them to an app: every type that a port can have, in words.

    fp32 [1, 4] (any of 1..?, 4..4)          image 224 x 224 RGB (2 sizes: 224 x 224, 299 x 299), optional
Source: coremltools, mlmodel/format/FeatureTypes.proto.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import Message

from torchane.mil.types import DType

#: FeatureTypes.proto, enum ArrayDataType.
ARRAY_CODES = {
    DType.FP32: 65568, DType.FP64: 65600, DType.INT32: 131104, DType.INT8: 131080, DType.FP16: 65552,
}  # fmt: skip
_ARRAY_DTYPES = {code: dtype for dtype, code in ARRAY_CODES.items()}
_COLORS = {10: "grayscale", 20: "RGB", 30: "BGR", 40: "grayscale in fp16"}

#: How many of a port's sizes are named.
_SHOWN = 8


@dataclass(frozen=True)
class Port:
    """What the model's description says of one input, output or state.

    kind: its type without array details, in words. dtype, shape: of a tensor; no dtype where Core ML's number of it is
    not known. shapes: describes flexible ones. default: of an optional tensor that is left out.
    """

    name: str
    kind: str
    dtype: DType | None = None
    shape: tuple[int, ...] = ()
    shapes: str = ""
    is_optional: bool = False
    default: float | None = None

    def __str__(self) -> str:
        shape = f" [{', '.join(map(str, self.shape))}]"
        said = f"{self.dtype.mil_name}{shape}" if self.dtype is not None else self.kind
        if self.dtype is None and self.shape:
            said += shape
        if self.shapes:
            said += f" ({self.shapes})"
        if self.is_optional:
            said += ", optional" + ("" if self.default is None else f", {self.default:g} if left out")
        return said


@dataclass(frozen=True)
class Description:
    """The ports of a model or of one of its functions. training_inputs: of a model that can be updated; predicted: of a
    classifier or regressor, the outputs that hold the prediction and its probabilities."""

    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    states: tuple[Port, ...] = ()
    training_inputs: tuple[Port, ...] = ()
    predicted: tuple[str, ...] = ()


def read_description(message: Message) -> Description:
    """Of a ModelDescription or a FunctionDescription."""
    predicted = (message.predictedFeatureName, message.predictedProbabilitiesName)
    return Description(
        tuple(map(_port, message.input)),
        tuple(map(_port, message.output)),
        tuple(map(_port, message.state)),
        tuple(map(_port, getattr(message, "trainingInput", ()))),
        tuple(name for name in predicted if name),
    )


def _port(message: Message) -> Port:
    type_ = message.type
    kind = (type_.WhichOneof("Type") or "untyped").removesuffix("Type")
    array = type_.multiArrayType if kind == "multiArray" else type_.stateType.arrayType if kind == "state" else None
    if array is None:
        shapes = ""
        if kind == "image":
            image = type_.imageType
            color = _COLORS.get(image.colorSpace, f"of color space {image.colorSpace}")
            kind, shapes = f"image {image.width} x {image.height} {color}", _image_sizes(image)
        elif kind == "dictionary":
            kind = f"dictionary by {_inner(type_.dictionaryType, 'KeyType').removesuffix('Key')}"
        elif kind == "sequence":
            kind = f"sequence of {_inner(type_.sequenceType, 'Type')}"
            shapes = f"{_range(type_.sequenceType.sizeRange)} long" if type_.sequenceType.HasField("sizeRange") else ""
        return Port(message.name, kind, shapes=shapes, is_optional=type_.isOptional)
    dtype = _ARRAY_DTYPES.get(array.dataType)
    kind = kind if dtype is not None else f"{kind} of element type {array.dataType}"
    default = array.WhichOneof("defaultOptionalValue")
    return Port(
        message.name, kind, dtype, tuple(array.shape), _flexible(array), type_.isOptional,
        None if default is None else getattr(array, default),
    )  # fmt: skip


def _inner(message: Message, group: str) -> str:
    return (message.WhichOneof(group) or "nothing known").removesuffix("Type")


def _flexible(array: Message) -> str:
    which = array.WhichOneof("ShapeFlexibility")
    if which == "enumeratedShapes":
        return _listed("shapes", [f"[{', '.join(map(str, shape.shape))}]" for shape in array.enumeratedShapes.shapes])
    if which == "shapeRange":
        return f"any of {', '.join(map(_range, array.shapeRange.sizeRanges))}"
    return ""


def _image_sizes(image: Message) -> str:
    which = image.WhichOneof("SizeFlexibility")
    if which == "enumeratedSizes":
        return _listed("sizes", [f"{size.width} x {size.height}" for size in image.enumeratedSizes.sizes])
    if which == "imageSizeRange":
        return f"any of {_range(image.imageSizeRange.widthRange)} x {_range(image.imageSizeRange.heightRange)}"
    return ""


def _listed(what: str, items: list[str]) -> str:
    more = f", and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else ""
    return f"{len(items):,} {what}: {', '.join(items[:_SHOWN])}{more}"


def _range(size: Message) -> str:
    return f"{size.lowerBound}..{'?' if size.upperBound < 0 else size.upperBound}"


def plain(ports: Iterable[Port]) -> dict[str, str]:
    """By name, in words."""
    return {port.name: str(port) for port in ports}
