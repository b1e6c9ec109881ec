"""States written and read in two statements, as in all of Core ML's files.

    y = coreml_update_state(state = s, value = v)     ->     write_state(input = s, data = v); y = read_state(input = s)
The joined op is a dialect of converters; Core ML's reader does not know it. Same bits.
Source: coremltools, mil/backend/mil/passes and mil/ops/defs/iOS18/states.py.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torchane.mil.ir import Op, Program
from torchane.mil.kinds import kind_of


def updates_apart(program: Program) -> Program:
    """Returns a new Program without a coreml_update_state, nested blocks done too."""
    functions = (replace(function, ops=tuple(_apart(function.ops))) for function in program.functions)
    return replace(program, functions=tuple(functions))


def _apart(ops: Iterable[Op]) -> Iterator[Op]:
    for op in ops:
        if op.kind.name == "coreml_update_state":
            state, value = op.args["state"], op.args["value"]
            yield Op(kind_of("write_state"), {"input": state, "data": value}, ())
            yield replace(op, kind=kind_of("read_state"), args={"input": state})
        else:
            yield replace(op, blocks=tuple(replace(block, ops=tuple(_apart(block.ops))) for block in op.blocks))
