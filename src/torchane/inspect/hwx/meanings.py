"""What a task does, in words, from the registers whose values public sources explain.

    {"input": "fp16", "output": "fp16", "nonlinear": "ReLU"}

Only what was written is told: a register that no task wrote has its default, which sources disagree about.
Sources: FTN (tags in docs/formats.md). Of version 7, fp16 and ReLU are verified: the shared programs of a convolution
and of a ReLU say so; nothing else is.
"""

from collections.abc import Iterator, Mapping

from torchane.inspect.hwx.registers import name_of

_FORMATS = {0: "int8", 1: "uint8", 2: "fp16"}
_CLASSES = {
    1: "pooling, ReLU on the input", 2: "element-wise, ReLU", 3: "element-wise", 4: "gain and offset",
    5: "element-wise with a reduction, ReLU", 6: "element-wise with a reduction", 8: "pooling",
}  # fmt: skip
_PLANAR = {0: "add", 1: "mul", 2: "max", 3: "min"}

#: By block, register and field: what it is called here, and its values. Values without a word are shown as numbers.
_VERSION_7 = {
    ("Common", "ChCfg", "InFmt"): ("input", _FORMATS),
    ("Common", "ChCfg", "OutFmt"): ("output", _FORMATS),
    ("NE", "KernelCfg", "Fmt"): ("weights", _FORMATS),
    ("NE", "KernelCfg", "Palettized"): ("palettized", {0: "", 1: "yes"}),
    ("NE", "KernelCfg", "Sparse"): ("sparse", {0: "", 1: "yes"}),
    ("NE", "MACCfg", "Nonlinear"): ("nonlinear", {0: "", 1: "ReLU", 2: "table or clamp", 3: "abs"}),
    ("L2", "L2Cfg", "InputReLU"): ("input ReLU", {0: "", 1: "yes"}),
    ("PE", "Cfg", "Relu"): ("planar ReLU", {0: "", 1: "yes"}),
}
_LATER = {
    ("Common", "GroupConvCfg", "TaskType"): ("class", {0: "", 7: "", **_CLASSES}),
    ("Common", "ChannelCfg", "InFmt"): ("input", _FORMATS),
    ("Common", "ChannelCfg", "Src2Fmt"): ("second input", _FORMATS),
    ("Common", "ChannelCfg", "OutFmt"): ("output", _FORMATS),
    ("Common", "MacCfg", "TaskType"): ("class", {0: "", 7: "", **_CLASSES}),
    ("NE", "KernelCfg", "Fmt"): ("weights", _FORMATS),
    ("NE", "KernelCfg", "Pal"): ("palettized", {0: "", 1: "yes"}),
    ("NE", "KernelCfg", "Sparse"): ("sparse", {0: "", 1: "yes"}),
    ("NE", "MacCfg", "OpMode"): (
        "engine", {0: "conv", 1: "element-wise", 2: "RCAS", 3: "element-wise sqrt", 4: "bypass", 5: "transposed conv"},
    ),
    ("NE", "MacCfg", "Nonlinear"): ("nonlinear", {0: "", 1: "ReLU", 2: "table or clamp", 3: "abs"}),
    ("NE", "MacCfg", "DoubleInt8"): ("two int8 products at once", {0: "", 1: "yes"}),
    ("PE", "Cfg", "Pool"): ("pool", {0: "", 1: "average", 2: "max", 3: "min"}),
    ("PE", "Cfg", "Op"): ("planar", {**_PLANAR, 4: "sum of squares"}),
}  # fmt: skip


def meanings(version: int, registers: Mapping[int, int]) -> dict[str, str]:
    """The words for the registers (byte address to value) that a task ends up with; empty ones are left out."""
    return {name: word for name, word in _told(version, registers) if word}


def _told(version: int, registers: Mapping[int, int]) -> Iterator[tuple[str, str]]:
    table = _VERSION_7 if version == 7 else _LATER
    for address, value in sorted(registers.items()):
        block, register, fields = name_of(version, address)
        values = {field.name: field.of(value) for field in fields}
        for field, number in values.items():
            found = table.get((block, register, field))
            if found is not None:
                yield found[0], found[1].get(number, str(number))
        if version == 7 and (block, register) == ("PE", "Cfg") and values["En"]:
            yield "planar", {**_PLANAR, 4: "sub"}.get(values["OpMode"], str(values["OpMode"]))
