"""Apple's model intermediate language: types, programs, text, blobs, a checker and an evaluator.

    program = mil.load("model.mlmodelc/model.mil")        # weights stay in their file, mapped
    mil.check(program)                                    # raises CompileError that names op and reason
    outputs = mil.evaluate(program, {"x": x})             # NumPy, exact, slow; arithmetic="engine": as the chip does
    print(mil.to_text(program))
    print(*mil.diff(program, other), sep="\\n")           # what they do differently
    mil.save(program, "folder")                           # folder/model.mil, folder/weights/weight.bin

Needs NumPy and nothing else.
"""

from torchane.mil.check import check
from torchane.mil.diff import Difference, diff
from torchane.mil.engine import ENGINE
from torchane.mil.evaluate import evaluate
from torchane.mil.fast import FAST
from torchane.mil.save import emit, load, save
from torchane.mil.text import parse, to_text

__all__ = ["ENGINE", "FAST", "Difference", "check", "diff", "emit", "evaluate", "load", "parse", "save", "to_text"]
