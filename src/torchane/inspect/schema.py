"""Core ML's model files as protobuf messages, as far as programs and their descriptions go.

    Model ── description: ports, metadata          Program ── functions ── Function ── blocks ── Block
      └───── mlProgram ─────────────────────────────┘                       Operation: type, inputs, outputs

A table of field numbers, given to the `protobuf` package in a pool of its own: coremltools registers messages of
the same names in the common pool, and both can live in one process. A model of another kind (a neural network,
a tree, ...) is kept as the bytes that it is; a pipeline holds models. Enumerations are plain integers.
Source: coremltools, mlmodel/format/Model.proto, FeatureTypes.proto, MIL.proto (field names and numbers).
"""

import re

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_PACKAGE = "torchane.coreml"

# One field a line: number, name, type. `*` repeats, `string->T` is a map, `@group` holds at most one of a group.
_MESSAGES = {
    "Model": """
        1 specificationVersion int32          2 description ModelDescription      10 isUpdatable bool
        200 pipelineClassifier PipelineClassifier @Type           201 pipelineRegressor PipelineRegressor @Type
        202 pipeline Pipeline @Type
        300 glmRegressor bytes @Type          301 supportVectorRegressor bytes @Type
        302 treeEnsembleRegressor bytes @Type 303 neuralNetworkRegressor bytes @Type
        304 bayesianProbitRegressor bytes @Type
        400 glmClassifier bytes @Type         401 supportVectorClassifier bytes @Type
        402 treeEnsembleClassifier bytes @Type
        403 neuralNetworkClassifier bytes @Type                   404 kNearestNeighborsClassifier bytes @Type
        500 neuralNetwork bytes @Type         501 itemSimilarityRecommender bytes @Type
        502 mlProgram Program @Type           555 customModel bytes @Type         556 linkedModel bytes @Type
        560 classConfidenceThresholding bytes @Type
        600 oneHotEncoder bytes @Type         601 imputer bytes @Type             602 featureVectorizer bytes @Type
        603 dictVectorizer bytes @Type        604 scaler bytes @Type              606 categoricalMapping bytes @Type
        607 normalizer bytes @Type            609 arrayFeatureExtractor bytes @Type
        610 nonMaximumSuppression bytes @Type 900 identity bytes @Type
        2000 textClassifier bytes @Type       2001 wordTagger bytes @Type         2002 visionFeaturePrint bytes @Type
        2003 soundAnalysisPreprocessing bytes @Type                               2004 gazetteer bytes @Type
        2005 wordEmbedding bytes @Type        2006 audioFeaturePrint bytes @Type  3000 serializedModel bytes @Type""",
    "PipelineClassifier": "1 pipeline Pipeline",
    "PipelineRegressor": "1 pipeline Pipeline",
    "Pipeline": "1 models *Model                2 names *string",
    "ModelDescription": """
        1 input *FeatureDescription           10 output *FeatureDescription       13 state *FeatureDescription
        11 predictedFeatureName string        12 predictedProbabilitiesName string
        20 functions *FunctionDescription     21 defaultFunctionName string
        50 trainingInput *FeatureDescription  100 metadata Metadata""",
    "FunctionDescription": """
        1 name string                         2 input *FeatureDescription         3 output *FeatureDescription
        6 state *FeatureDescription           4 predictedFeatureName string
        5 predictedProbabilitiesName string""",
    "Metadata": """
        1 shortDescription string             2 versionString string              3 author string
        4 license string                      100 userDefined string->string""",
    "FeatureDescription": "1 name string      2 shortDescription string           3 type FeatureType",
    "FeatureType": """
        1 int64Type bytes @Type               2 doubleType bytes @Type            3 stringType bytes @Type
        4 imageType ImageFeatureType @Type    5 multiArrayType ArrayFeatureType @Type
        6 dictionaryType DictionaryFeatureType @Type              7 sequenceType SequenceFeatureType @Type
        8 stateType StateFeatureType @Type    1000 isOptional bool""",
    "DictionaryFeatureType": "1 int64KeyType bytes @KeyType                   2 stringKeyType bytes @KeyType",
    "SequenceFeatureType": """
        1 int64Type bytes @Type               3 stringType bytes @Type            101 sizeRange SizeRange""",
    "ImageFeatureType": """
        1 width int64                         2 height int64                      3 colorSpace int32
        21 enumeratedSizes EnumeratedImageSizes @SizeFlexibility
        31 imageSizeRange ImageSizeRange @SizeFlexibility""",
    "EnumeratedImageSizes": "1 sizes *ImageSize",
    "ImageSize": "1 width uint64                2 height uint64",
    "ImageSizeRange": "1 widthRange SizeRange   2 heightRange SizeRange",
    "ArrayFeatureType": """
        1 shape *int64                        2 dataType int32
        21 enumeratedShapes EnumeratedShapes @ShapeFlexibility    31 shapeRange ShapeRange @ShapeFlexibility
        41 intDefaultValue int32 @defaultOptionalValue
        51 floatDefaultValue float @defaultOptionalValue
        61 doubleDefaultValue double @defaultOptionalValue""",
    "StateFeatureType": "1 arrayType ArrayFeatureType @Type",
    "EnumeratedShapes": "1 shapes *Shape",
    "Shape": "1 shape *int64",
    "ShapeRange": "1 sizeRanges *SizeRange",
    "SizeRange": "1 lowerBound uint64         2 upperBound int64",
    "Program": """
        1 version int64                       2 functions string->Function
        3 docString string                    4 attributes string->Value""",
    "Function": """
        1 inputs *NamedValueType              2 opset string
        3 block_specializations string->Block 4 attributes string->Value""",
    "Block": """
        1 inputs *NamedValueType              2 outputs *string
        3 operations *Operation               4 attributes string->Value""",
    "Operation": """
        1 type string                         2 inputs string->Argument           3 outputs *NamedValueType
        4 blocks *Block                       5 attributes string->Value""",
    "Argument": "1 arguments *Binding",
    "Binding": "1 name string @binding        2 value Value @binding",
    "NamedValueType": "1 name string          2 type ValueType",
    "ValueType": """
        1 tensorType TensorType @type         2 listType ListType @type           3 tupleType TupleType @type
        4 dictionaryType DictionaryType @type 5 stateType StateType @type""",
    "TensorType": """
        1 dataType int32                      2 rank int64
        3 dimensions *Dimension               4 attributes string->Value""",
    "TupleType": "1 types *ValueType",
    "ListType": "1 type ValueType             2 length Dimension",
    "DictionaryType": "1 keyType ValueType    2 valueType ValueType",
    "StateType": "1 wrappedType ValueType",
    "Dimension": "1 constant ConstantDimension @dimension         2 unknown UnknownDimension @dimension",
    "ConstantDimension": "1 size uint64",
    "UnknownDimension": "1 variadic bool",
    "Value": """
        1 docString string                    2 type ValueType
        3 immediateValue ImmediateValue @value                    5 blobFileValue BlobFileValue @value""",
    "ImmediateValue": """
        1 tensor TensorValue @value           2 tuple TupleValue @value
        3 list ListValue @value               4 dictionary DictionaryValue @value""",
    "BlobFileValue": "1 fileName string       2 offset uint64",
    "TensorValue": """
        1 floats RepeatedFloats @value        2 ints RepeatedInts @value          3 bools RepeatedBools @value
        4 strings RepeatedStrings @value      5 longInts RepeatedLongInts @value  6 doubles RepeatedDoubles @value
        7 bytes RepeatedBytes @value""",
    "RepeatedFloats": "1 values *float",
    "RepeatedDoubles": "1 values *double",
    "RepeatedInts": "1 values *int32",
    "RepeatedLongInts": "1 values *int64",
    "RepeatedBools": "1 values *bool",
    "RepeatedStrings": "1 values *string",
    "RepeatedBytes": "1 values bytes",
    "TupleValue": "1 values *Value",
    "ListValue": "1 values *Value",
    "DictionaryValue": "1 values *KeyValuePair",
    "KeyValuePair": "1 key Value              2 value Value",
}
_FIELD = re.compile(r"(\d+) (\w+) (\*|string->)?(\w+)(?: @(\w+))?")
_SCALARS = ("bool", "bytes", "double", "float", "int32", "int64", "string", "uint64")


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="torchane/coreml.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, prefix, type_, group in _FIELD.findall(fields):
            if prefix == "string->":
                type_ = _entry(message, field, type_)
            added = _add_field(message, field, int(number), type_)
            if prefix:
                added.label = added.LABEL_REPEATED
            if group:
                groups = [declared.name for declared in message.oneof_decl]
                if group not in groups:
                    message.oneof_decl.add(name=group)
                    groups.append(group)
                added.oneof_index = groups.index(group)
    return file


def _entry(message: descriptor_pb2.DescriptorProto, field: str, type_: str) -> str:
    """The message of key and value that stands for a map, by its full name."""
    name = "".join(part.capitalize() for part in field.split("_")) if "_" in field else field[0].upper() + field[1:]
    entry = message.nested_type.add(name=name + "Entry", options=descriptor_pb2.MessageOptions(map_entry=True))
    _add_field(entry, "key", 1, "string")
    _add_field(entry, "value", 2, type_)
    return f"{message.name}.{entry.name}"


def _add_field(
    message: descriptor_pb2.DescriptorProto, name: str, number: int, type_: str
) -> descriptor_pb2.FieldDescriptorProto:
    field = message.field.add(name=name, number=number)
    field.label = field.LABEL_OPTIONAL
    if type_ in _SCALARS:
        field.type = getattr(field, f"TYPE_{type_.upper()}")
    else:
        field.type = field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{type_}"
    return field


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_file())


def _message(name: str) -> type[Message]:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


Model = _message("Model")
ModelDescription = _message("ModelDescription")
FeatureDescription = _message("FeatureDescription")
Program = _message("Program")
Function = _message("Function")
Block = _message("Block")
Operation = _message("Operation")
Value = _message("Value")
ValueType = _message("ValueType")

#: Every kind of model that a file can hold, by the field that holds it.
MODEL_TYPES = tuple(field.name for field in Model.DESCRIPTOR.oneofs_by_name["Type"].fields)
