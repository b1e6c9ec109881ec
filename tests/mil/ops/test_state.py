"""States, against coremltools' types and Python."""

import numpy as np
import pytest
from second_opinion import OPSETS, built, cml, compare

from torchane.errors import CompileError
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, FP32, StateType, TensorType

CASES = [(op, "Python") for op in ("read_state", "write_state", "coreml_update_state")]
HELD = TensorType(FP16, (2,))


def counter():
    """A program that adds its input to a state and gives back what it was before, and is after."""
    builder = Builder()
    x, total = builder.input("x", (2,)), builder.input("total", StateType(HELD))
    before = builder.read_state(input=total, name="before")
    builder.emit(KINDS["write_state"], {"input": total, "data": builder.add(x=before, y=x)})
    return builder.program(before, builder.read_state(input=total, name="after"))


def test_a_state_is_read_as_it_was_written_last():
    given = evaluate(counter(), {"x": np.array([1, 2])})
    assert (given["before"].tolist(), given["after"].tolist()) == ([0, 0], [1, 2])


def test_states_live_from_run_to_run_in_the_mapping_they_are_given():
    states = {"total": np.array([10, 20], np.float16)}
    for _ in range(3):
        evaluate(counter(), {"x": np.array([1, 2])}, states=states)
    assert states["total"].dtype == np.float16
    assert states["total"].tolist() == [13, 26]


def test_a_state_that_is_absent_starts_as_zeros_and_is_left_in_the_mapping():
    states: dict[str, np.ndarray] = {}
    evaluate(counter(), {"x": np.array([1, 2])}, states=states)
    assert states["total"].tolist() == [1, 2]


def test_an_array_of_the_caller_is_not_changed():
    mine = np.array([10, 20], np.float16)
    evaluate(counter(), {"x": np.array([1, 2])}, states={"total": mine})
    assert mine.tolist() == [10, 20]


def test_updating_a_state_gives_what_was_written():
    """The dialect op of coremltools, which its files never hold."""

    def build(x, state):
        return cml.Builder.coreml_update_state(state=state, value=x)

    placeholders = {
        "x": cml.Builder.placeholder((2,), dtype=cml.types.fp16),
        "state": cml.Builder.state_tensor_placeholder((2,), dtype=cml.types.fp16),
    }
    program = built(build, placeholders, OPSETS["iOS18"])
    states: dict[str, np.ndarray] = {}
    (value,) = evaluate(program, {"x": np.array([5, 6])}, states=states).values()
    assert value.tolist() == states["state"].tolist() == [5, 6]
    compare(build, placeholders, {"x": np.array([5, 6])}, expected_outputs=[np.array([5, 6])], backend=None)


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("read_state", {"input": HELD}, "read_state: input is a tensor<fp16"),
        (
            "write_state",
            {"input": StateType(HELD), "data": TensorType(FP32, (2,))},
            "write_state: the state is .*equal",
        ),
        (
            "coreml_update_state",
            {"state": StateType(HELD), "value": TensorType(FP16)},
            "coreml_update_state: the state",
        ),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)
