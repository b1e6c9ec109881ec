"""Every type that a port of a Core ML model can have, in words; the messages are coremltools' own."""

import pytest
from coremltools.proto import FeatureTypes_pb2, Model_pb2

from torchane.inspect import mlmodel, schema
from torchane.inspect.ports import ARRAY_CODES


def described(fill) -> str:
    """What is said of an input whose type `fill` writes."""
    model = Model_pb2.Model(specificationVersion=9)
    model.identity.SetInParent()
    port = model.description.input.add(name="x")
    fill(port.type)
    (found,) = mlmodel.parse(model.SerializeToString()).description.inputs
    return str(found)


def array(type_, shape=(1, 4), code=65568):
    type_.multiArrayType.shape.extend(shape)
    type_.multiArrayType.dataType = code
    return type_.multiArrayType


def shapes(type_, *found):
    for shape in found:
        array(type_, ()).enumeratedShapes.shapes.add().shape.extend(shape)


def ranges(type_, *found):
    for low, high in found:
        array(type_, ()).shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)


def image(type_, color=20):
    type_.imageType.width, type_.imageType.height, type_.imageType.colorSpace = 224, 112, color
    return type_.imageType


def optional(type_, default=None):
    type_.isOptional = True
    held = array(type_)
    if default is not None:
        held.floatDefaultValue = default


def image_ranges(type_):
    held = image(type_).imageSizeRange
    held.widthRange.lowerBound, held.widthRange.upperBound = 1, -1
    held.heightRange.lowerBound, held.heightRange.upperBound = 64, 128


CASES = {
    "int64": lambda t: t.int64Type.SetInParent(),
    "double": lambda t: t.doubleType.SetInParent(),
    "string": lambda t: t.stringType.SetInParent(),
    "untyped": lambda t: None,
    "fp32 [1, 4]": array,
    "fp32 [1, 4], optional": optional,
    "fp32 [1, 4], optional, 0.5 if left out": lambda t: optional(t, 0.5),
    "fp32 [] (2 shapes: [1, 4], [1, 8])": lambda t: shapes(t, (1, 4), (1, 8)),
    "fp32 [] (9 shapes: [1], [2], [3], [4], [5], [6], [7], [8], and 1 more)": lambda t: shapes(t, *((n,) for n in range(1, 10))),
    "fp32 [] (any of 1..?, 4..8)": lambda t: ranges(t, (1, -1), (4, 8)),
    "multiArray of element type 7 [1, 4]": lambda t: array(t, code=7),
    "image 224 x 112 RGB": image,
    "image 224 x 112 grayscale": lambda t: image(t, 10),
    "image 224 x 112 BGR": lambda t: image(t, 30),
    "image 224 x 112 grayscale in fp16": lambda t: image(t, 40),
    "image 224 x 112 RGB (1 sizes: 3 x 5)": lambda t: image(t).enumeratedSizes.sizes.add(width=3, height=5),
    "image 224 x 112 RGB (any of 1..? x 64..128)": image_ranges,
    "dictionary by string": lambda t: t.dictionaryType.stringKeyType.SetInParent(),
    "dictionary by int64": lambda t: t.dictionaryType.int64KeyType.SetInParent(),
    "sequence of string": lambda t: t.sequenceType.stringType.SetInParent(),
    "sequence of int64 (2..5 long)": lambda t: (
        t.sequenceType.int64Type.SetInParent(), t.sequenceType.sizeRange.MergeFrom(FeatureTypes_pb2.SizeRange(lowerBound=2, upperBound=5)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", CASES)
def test_every_type_has_its_words(words):
    assert described(CASES[words]) == words


def test_every_type_of_port_is_among_the_cases():
    kinds = {field.name for field in FeatureTypes_pb2.FeatureType.DESCRIPTOR.oneofs_by_name["Type"].fields}
    covered = set()
    for fill in CASES.values():
        type_ = FeatureTypes_pb2.FeatureType()
        fill(type_)
        covered.add(type_.WhichOneof("Type"))
    assert kinds - covered == {"stateType"}  # test_mlmodel.py
    assert {code.mil_name for code in ARRAY_CODES} == {"fp16", "fp32", "fp64", "int8", "int32"}


@pytest.mark.parametrize("kind", schema.MODEL_TYPES)
def test_a_model_of_every_kind_shows_its_ports(kind):
    model = Model_pb2.Model(specificationVersion=9)
    getattr(model, kind).SetInParent()
    if kind == "mlProgram":
        model.mlProgram.functions["main"].opset = "CoreML8"
        model.mlProgram.functions["main"].block_specializations["CoreML8"].SetInParent()
    array(model.description.input.add(name="x").type)
    model.description.output.add(name="y").type.stringType.SetInParent()
    model.description.trainingInput.add(name="truth").type.int64Type.SetInParent()
    model.description.predictedFeatureName = "y"
    found = mlmodel.parse(model.SerializeToString())
    assert found.kind == kind
    assert [str(port) for port in found.description.inputs] == ["fp32 [1, 4]"]
    assert [str(port) for port in found.description.outputs] == ["string"]
    assert [port.name for port in found.description.training_inputs] == ["truth"]
    assert found.description.predicted == ("y",)
