"""States: tensors that live between calls, read and written in order.

Source: coremltools, mil/ops/defs/iOS18/states.py, coreml_dialect/ops.py. `write_state` is what
`coreml_update_state` becomes in a file, followed by a `read_state` where its result is used.
"""

from dataclasses import dataclass

import numpy as np

from torchane.errors import CompileError
from torchane.mil.kinds import OpKind
from torchane.mil.types import StateType, TensorType


@dataclass
class State:
    """What a state holds while a program runs."""

    array: np.ndarray


read_state = OpKind("read_state", operands=("input",))


@read_state.infers
def _(input: StateType) -> TensorType:
    return input.tensor


@read_state.evaluates
def _(input: State) -> np.ndarray:
    return input.array


def _require_same(kind: str, state: StateType, value: TensorType) -> None:
    if state.tensor != value:
        raise CompileError(f"{kind}: the state is {state} and what it is to hold is {value}; they must be equal.")


write_state = OpKind("write_state", operands=("input", "data"))


@write_state.infers
def _(input: StateType, data: TensorType) -> tuple[()]:
    """The state holds data from here on; there is no result."""
    _require_same("write_state", input, data)
    return ()


@write_state.evaluates
def _(input: State, data: np.ndarray) -> tuple[()]:
    input.array = data
    return ()


coreml_update_state = OpKind("coreml_update_state", operands=("state", "value"))


@coreml_update_state.infers
def _(state: StateType, value: TensorType) -> TensorType:
    """write_state and the read_state of what was written, in one."""
    _require_same("coreml_update_state", state, value)
    return value


@coreml_update_state.evaluates
def _(state: State, value: np.ndarray) -> np.ndarray:
    state.array = value
    return value
