"""What the twin promises beyond the contract: counts, outputs of every kind, refusals of a chosen chip."""

import math

import numpy as np
import pytest

from torchane import chips
from torchane.errors import DeviceError
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Program, literal
from torchane.mil.name_constants import name_constants
from torchane.mil.save import emit
from torchane.mil.text import to_text
from torchane.runtime.device import Limits
from torchane.runtime.twin import TwinDevice, load_program


def run(program: Program, *arrays: np.ndarray, times: int = 1, device: TwinDevice | None = None) -> list[np.ndarray]:
    device = device or TwinDevice()
    ready = load_program(program, "test")
    given, results = [device.allocate(t) for t in ready.inputs], [device.allocate(t) for t in ready.outputs]
    for buffer, array in zip(given, arrays, strict=True):
        buffer.array[...] = array
    for _ in range(times):
        device.run(ready, given, results)
    return [buffer.array for buffer in results]


def test_executed_ops_are_those_of_the_stats_at_every_run() -> None:
    b = Builder()
    x = b.input("x", (4, 32))
    y = b.add(x=b.mul(x=x, y=x), y=1.0)
    program = b.program(b.softmax(x=b.reshape(x=y, shape=(2, 2, 32))), b.reduce_sum(x=y, axes=(0,)), b.identity(x=x))
    device = TwinDevice()
    run(program, np.ones((4, 32)), times=3, device=device)
    stats = load_program(program, "test").stats
    assert device.executed == {kind: 3 * count for kind, count in stats.float_ops.items()}
    assert stats.float_ops == {"mul": 1, "add": 1, "reshape": 1, "softmax": 1, "reduce_sum": 1, "identity": 1}


def test_outputs_that_are_inputs_constants_parts_or_each_other_are_copied() -> None:
    b = Builder()
    x = b.input("x", (4, 32))
    y = b.exp(x=x)
    constant = literal(np.arange(64, dtype=np.float16).reshape(2, 32))
    program = b.program(
        b.identity(x=x),
        b.reshape(x=y, shape=(2, 64)),
        b.identity(x=y),
        b.slice_by_size(x=y, begin=(1, 0), size=(2, 32)),
        b.identity(x=constant),
        b.add(x=b.slice_by_size(x=y, begin=(2, 0), size=(2, 32)), y=constant),
    )
    given = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float16)
    wanted = evaluate(program, {"x": given})
    for got, var in zip(run(program, given), program.outputs):
        assert np.array_equal(got, wanted[var.name]), var.name


def test_programs_share_one_device_without_seeing_each_other() -> None:
    device = TwinDevice()
    ready = []
    for factor in (2.0, 3.0):
        b = Builder()
        x = b.input("x", (64, 64))
        ready.append(load_program(b.program(b.matmul(x=b.matmul(x=x, y=x), y=b.mul(x=x, y=factor))), "test"))
    surface, result = device.allocate(ready[0].inputs[0]), device.allocate(ready[0].outputs[0])
    surface.array[...] = np.eye(64)
    for factor in (2, 3, 2):
        device.run(ready[factor - 2], [surface], [result])
        assert np.array_equal(result.array, factor * np.eye(64))


def test_equal_constants_are_kept_once() -> None:
    b = Builder()
    x = b.input("x", (4, 32))
    weights = [literal(np.full((4, 32), 7, np.float16)) for _ in range(3)]
    program = b.program(b.add(x=b.add(x=b.add(x=x, y=weights[0]), y=weights[1]), y=weights[2]))
    assert load_program(program, "test").stats.constant_bytes == 4 * 32 * 2
    assert (run(program, np.zeros((4, 32)))[0] == 21).all()


def test_with_a_chip_the_twin_refuses_what_the_chip_refuses() -> None:
    b = Builder()
    x = b.input("a0_x", (1, 8, 1, 33))
    text = to_text(name_constants(b.program(b.add(x=x, y=1.0, name="z0_y"))))
    TwinDevice().load(text, {})
    with pytest.raises(DeviceError, match="layer3"):
        TwinDevice(chips.load("portable")).load(text, {}, name="layer3")


@pytest.mark.parametrize("chip", chips.names())
def test_with_a_chip_the_twin_takes_what_the_chip_takes(chip: str) -> None:
    """As the text has it: constants have names there, and lie in a weight file."""
    b = Builder()
    x = b.input("a0_x", (1, 8, 1, 64))
    weight = np.ones((1, 1, 64, 64), np.float16)
    z = b.add(x=b.matmul(x=b.reshape(x=x, shape=(1, 1, 8, 64)), y=weight), y=1.0)
    text, blobs = emit(name_constants(b.program(b.reshape(x=z, shape=(1, 8, 1, 64), name="z0_y"))))
    assert TwinDevice(chips.load(chip)).load(text, blobs).stats.constant_bytes > 0


def test_a_program_of_another_device_is_refused() -> None:
    class Foreign:
        name = "layer3"
        inputs = outputs = ()

    with pytest.raises(DeviceError, match="layer3 was loaded by another device"):
        TwinDevice().run(Foreign(), [], [])  # type: ignore[arg-type]


X, Y = np.ones((32, 64), np.float16), np.ones((64, 96), np.float16)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _one_byte_on(array: np.ndarray) -> np.ndarray:
    """A copy that begins at an odd place in memory."""
    moved = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


@pytest.mark.parametrize(("inputs", "change", "complaint"), [
    ((X.T, Y), None, r"input 0 has the shape \(64, 32\); the port's is \(32, 64\)"), ((X, Y[:63]), None, r"input 1 has the shape \(63, 96\)"),
    ((X.reshape(-1), Y), None, r"input 0 has the shape \(2048\)"), ((X,), None, "has 2 inputs and was given 1"),
    ((np.ones((32, 128), np.float16)[:, ::2], Y), None, "input 0 is strided"), ((X[::-1], Y), None, "input 0 is strided"),
    ((X.astype(np.float32), Y), None, "input 0 holds float32"), ((X.astype(">f2"), Y), None, "input 0 holds >f2; numbers of this machine's byte order"),
    ((_one_byte_on(X), Y), None, "input 0 does not begin at a multiple of 2 bytes"), ((None, Y), None, "input 0 is a NoneType"),
    ((X, Y), _one_byte_on, "output 1 does not begin at a multiple of 2 bytes"), ((X, Y), _read_only, "output 1 is read-only"),
    ((X, Y), lambda out: out[:31], r"output 1 has the shape \(31, 96\)"), ((X, Y), lambda out: out.T.copy().T, "output 1 is strided"),
    ((X, Y), lambda out: out.astype(np.float32), "output 1 holds float32"),
])  # fmt: skip
def test_arrays_that_do_not_fit_are_refused_by_name_before_any_output_is_written(inputs, change, complaint) -> None:
    b = Builder()
    x, y = b.input("x", (32, 64)), b.input("y", (64, 96))
    product = b.matmul(x=x, y=y)
    program = load_program(b.program(b.relu(x=product), product), "layer7")
    outputs = [np.full((32, 96), 7, np.float16) for _ in range(2)]
    if change is not None:
        outputs[1] = change(outputs[1])
    with pytest.raises(DeviceError, match=f"layer7.*{complaint}"):
        TwinDevice().run_arrays(program, inputs, outputs)
    assert all((out == 7).all() for out in outputs)


def test_a_convolution_with_a_window_is_refused_with_its_form() -> None:
    b = Builder()
    x = b.input("x", (1, 8, 4, 32))
    program = b.program(b.conv(x=x, weight=literal(np.zeros((8, 8, 3, 3), np.float16)), name="window"))
    with pytest.raises(DeviceError, match=r"layer3: op window \(conv\).*1x1"):
        load_program(program, "layer3")


@pytest.mark.parametrize("kind", ["log", "erf"])
def test_every_number_goes_through_a_function_as_float64_has_it(kind: str) -> None:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(1, -1)
    b = Builder()
    x = b.input("x", numbers.shape)
    program = b.program(b.log(x=x, epsilon=0.0) if kind == "log" else b.erf(x=x))
    (found,) = run(program, numbers)
    with np.errstate(all="ignore"):
        wanted = np.log(numbers.astype(np.float64)) if kind == "log" else np.vectorize(math.erf)(numbers.astype(np.float64))
    assert np.array_equal(found, wanted.astype(np.float16), equal_nan=True)


def test_a_logarithm_with_an_epsilon_of_its_own_is_refused_with_the_reason() -> None:
    b = Builder()
    with pytest.raises(DeviceError, match="its epsilon is 0.001000.*, and the twin adds none"):
        load_program(b.program(b.log(x=b.input("x", (1, 32)), epsilon=1e-3)), "test")


@pytest.mark.parametrize("pad", [(0, 0, 1, 2), (3, 0, 0, 0), (1, 2, 3, 4), (5, 5)])
def test_a_pad_puts_its_number_around(pad: tuple[int, ...]) -> None:
    b = Builder()
    x = b.input("x", (2, 3, 32))
    y = b.exp(x=x)
    padded = b.pad(x=y, pad=(0, 0) * (3 - len(pad) // 2) + pad, mode="constant", constant_val=-2.5)
    program = b.program(padded, b.add(x=padded, y=1.0))
    given = np.random.default_rng(0).standard_normal((2, 3, 32)).astype(np.float16)
    wanted = evaluate(program, {"x": given})
    for got, var in zip(run(program, given), program.outputs):
        assert np.array_equal(got, wanted[var.name]), var.name
    with pytest.raises(DeviceError, match="it pads by reflect"):
        load_program(b.program(b.pad(x=y, pad=(0, 0, 0, 0, 1, 1), mode="reflect")), "test")


def test_with_a_chip_it_has_the_chips_limits() -> None:
    chip = chips.load("portable")
    limits = TwinDevice(chip).limits
    assert (limits.ports, limits.row_multiple) == (chip.limit("surfaces"), chip.limit("port_row_multiple"))
    assert TwinDevice().limits == Limits()
