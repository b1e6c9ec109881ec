"""Every value within a program, computed a second time on the twin beside each dispatch: an observer.

    Inside(look)       look(moment, function, values) after every dispatch, values: Var -> fp16 array
For every program it loads another one with all values as outputs. Twice the work and all the memory: for audits, not for training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from torchane.errors import UsageError
from torchane.mil.evaluate import as_computed
from torchane.mil.ir import Function, Program, Var
from torchane.mil.types import FP16, TensorType
from torchane.plan import Dispatch, Plan
from torchane.runtime.device import LoadedProgram
from torchane.runtime.observers import Moment, Observer
from torchane.runtime.twin import TwinDevice, load_program, read_program

Look = Callable[[Moment, Function, Mapping[Var, np.ndarray]], None]


class Opened:
    """A program whose every value is an output; in any arithmetic of the twin."""

    def __init__(self, text: str, blobs: Mapping[str, bytes], name: str, arithmetic: str):
        function = as_computed(read_program(text, blobs, name).main, arithmetic)
        inner = tuple(dict.fromkeys(var for op in function.ops for var in op.outputs if _is_of_fp16(var)))
        self.function = replace(function, outputs=inner)
        self._program = load_program(Program((self.function,)), name, arithmetic)

    def values(self, twin: TwinDevice, inputs: Sequence[np.ndarray]) -> dict[Var, np.ndarray]:
        """What each value is on these inputs, which are among them."""
        results = [twin.allocate(type_).array for type_ in self._program.outputs]
        twin.run_arrays(self._program, inputs, results)
        return {**dict(zip(self.function.inputs, inputs, strict=True)), **dict(zip(self.function.outputs, results, strict=True))}


class Inside(Observer):
    """The values are those of the last run, where range control needed several."""

    wants_losses = True

    def __init__(self, look: Look, arithmetic: str = "engine"):
        self._look = look
        self._twin = TwinDevice(arithmetic=arithmetic)
        self._opened: dict[int, tuple[LoadedProgram, Opened]] = {}  # by the program

    def compiled(self, plan: Plan, programs: Sequence[LoadedProgram | None]) -> None:
        """Raises UsageError for programs whose text is not all there is of them."""
        if any(spec.constants for spec in plan.programs):
            raise UsageError('programs that hold frozen weights cannot be looked into. Compile with options={"frozen": "inputs"}.')

    def after(self, moment: Moment) -> None:
        if isinstance(moment.step, Dispatch) and moment.runs:
            program, spec = moment.runs[-1].program, moment.plan.programs[moment.step.program]
            if id(program) not in self._opened:
                self._opened[id(program)] = program, Opened(spec.text, spec.blobs, spec.name, self._twin.arithmetic)
            _, opened = self._opened[id(program)]
            values = opened.values(self._twin, [buffer.look() for buffer in moment.runs[-1].inputs])
            self._look(moment, opened.function, values)


def _is_of_fp16(var: Var) -> bool:
    return isinstance(var.type, TensorType) and var.type.dtype is FP16
