"""What an opset is called in MIL text, in Core ML's files, and the versions of both that first hold it.

Source: coremltools, __init__.py (_OPSET, _SPECIFICATION_VERSION_*); text versions from files of Apple's compiler.
"""

#: Opset in text -> opset in the protobuf, specification version of the model.
OPSETS = {
    "ios13": ("CoreML3", 4),
    "ios14": ("CoreML4", 5),
    "ios15": ("CoreML5", 6),
    "ios16": ("CoreML6", 7),
    "ios17": ("CoreML7", 8),
    "ios18": ("CoreML8", 9),
    "ios26": ("CoreML9", 10),
}
_IN_TEXT = {name: opset for opset, (name, _) in OPSETS.items()}

#: The first opset whose text spells scalars without `tensor<..., []>`.
_FIRST_1_3 = 9


def from_protobuf(name: str) -> str:
    """`ios16` for `CoreML6`; a name that is not in the table stays as it is."""
    return _IN_TEXT.get(name, name)


def to_protobuf(opset: str) -> str:
    return OPSETS[opset][0] if opset in OPSETS else opset


def text_version(opset: str) -> str:
    """What Apple's compiler writes in `program(...)` for a model of this opset."""
    return "1.3" if opset not in OPSETS or OPSETS[opset][1] >= _FIRST_1_3 else "1.0"
