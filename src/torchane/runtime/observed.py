"""A twin that shows what happens inside programs.

    device = ObservedTwin(watch)       watch(loaded, values) after every run, values: Var -> fp16 array
Beside each program it loads a second one with every value as an output. Twice the work and all the memory: for
audits, not for training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from torchane.errors import DeviceError
from torchane.mil.evaluate import as_computed
from torchane.mil.ir import Function, Program, Var
from torchane.mil.types import FP16, TensorType
from torchane.runtime.device import Buffer, LoadedProgram
from torchane.runtime.twin import TwinDevice, TwinProgram, load_program, read_program

Watch = Callable[[LoadedProgram, Function, Mapping[Var, np.ndarray]], None]


class ObservedTwin(TwinDevice):
    """In any arithmetic of the twin. `watch` is given the program, its function and the values of one run;
    `loaded` holds every program in the order of loading."""

    def __init__(self, watch: Watch, arithmetic: str = "engine"):
        super().__init__(arithmetic=arithmetic)
        self._watch = watch
        self.loaded: list[TwinProgram] = []
        self._open: dict[int, tuple[Function, TwinProgram]] = {}

    def load(self, text: str, blobs: Mapping[str, bytes], *, name: str = "main") -> TwinProgram:
        loaded = super().load(text, blobs, name=name)
        self.loaded.append(loaded)
        function = as_computed(read_program(text, blobs, name).main, self.arithmetic)
        inner = tuple(dict.fromkeys(var for op in function.ops for var in op.outputs if _is_watched(var)))
        shown = replace(function, outputs=inner)
        self._open[id(loaded)] = (shown, load_program(Program((shown,)), name, self.arithmetic))
        return loaded

    def run(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> None:
        super().run(program, inputs, outputs)
        if id(program) not in self._open:
            raise DeviceError(f"{program.name} was loaded by another device. Load it on this one to run it there.")
        function, open_program = self._open[id(program)]
        results = [self.allocate(type_) for type_ in open_program.outputs]
        super().run(open_program, inputs, results)
        values = dict(zip(function.inputs, (buffer.array for buffer in inputs), strict=True))
        values |= zip(function.outputs, (buffer.array for buffer in results), strict=True)
        self._watch(program, function, values)


def _is_watched(var: Var) -> bool:
    return isinstance(var.type, TensorType) and var.type.dtype is FP16
