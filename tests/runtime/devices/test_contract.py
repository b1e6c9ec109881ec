"""What every device does, from the text of a program to its numbers: runs unchanged on the twin and on an engine.

Tolerance: an engine sums in its own order and format; 2^-8 of the largest result covers the forms that are
known. What only the twin promises, its bits, is tested in tests/native.
"""

import threading
from itertools import pairwise

import numpy as np
import pytest
from surfaces_and_weights import surface, weights

from torchane.errors import DeviceError, TorchaneError
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import BUILD_INFO, Program
from torchane.mil.name_constants import name_constants
from torchane.mil.text import parse, to_text
from torchane.runtime.device import Buffer, Device, LoadedProgram

TOLERANCE = 2.0**-8
HEAD = "program(1.3)\n[buildInfo = dict<string, string>({" + ", ".join(f'{{"{k}", "{v}"}}' for k, v in BUILD_INFO) + "})]\n"

LINEAR = (
    HEAD
    + """{
    func main<ios18>(tensor<fp16, [1, 64, 1, 96]> a0_x) {
        tensor<fp16, [32, 64, 1, 1]> w = const()[name = string("w"), val = tensor<fp16, [32, 64, 1, 1]>(BLOBFILE(path = string("@model_path/weights/weight.bin"), offset = uint64(64)))];
        tensor<int32, [2]> ones = const()[name = string("ones"), val = tensor<int32, [2]>([1, 1])];
        tensor<int32, [4]> none = const()[name = string("none"), val = tensor<int32, [4]>([0, 0, 0, 0])];
        string valid = const()[name = string("valid"), val = string("valid")];
        int32 groups = const()[name = string("groups"), val = int32(1)];
        tensor<fp16, [1, 32, 1, 96]> z0_y = conv(dilations = ones, groups = groups, pad = none, pad_type = valid, strides = ones, weight = w, x = a0_x)[name = string("z0_y")];
    } -> (z0_y);
}
"""
)
FILE = "@model_path/weights/weight.bin"


def training_like() -> Program:
    """Two inputs, three outputs: products, a softmax, a norm; ports as engines want them."""
    b = Builder()
    x, w = b.input("a0_x", (1, 64, 1, 96)), b.input("a1_w", (1, 1, 32, 64))
    y = b.matmul(x=w, y=b.reshape(x=x, shape=(1, 1, 64, 96)))
    mean = b.mul(x=b.reduce_sum(x=b.mul(x=x, y=x), axes=(1,), keep_dims=True), y=1 / 64)
    norm = b.mul(x=x, y=b.pow(x=b.add(x=mean, y=1e-3), y=-0.5))
    soft = b.softmax(x=y, axis=-1)
    dw = b.matmul(x=soft, y=b.reshape(x=x, shape=(1, 1, 64, 96)), transpose_y=True)
    return b.program(
        b.reshape(x=soft, shape=(1, 32, 1, 96), name="z0_soft"),
        b.identity(x=norm, name="z1_norm"),
        b.reshape(x=dw, shape=(1, 32, 1, 64), name="z2_dw"),
    )


def load(device: Device, program: Program, name: str = "layer") -> LoadedProgram:
    return device.load(to_text(name_constants(program)), {}, name=name)


def buffers(device: Device, program: LoadedProgram) -> tuple[list[Buffer], list[Buffer]]:
    return [device.allocate(t) for t in program.inputs], [device.allocate(t) for t in program.outputs]


def near(got: np.ndarray, wanted: np.ndarray) -> bool:
    wanted = wanted.astype(np.float64)
    return bool((np.abs(got - wanted) <= TOLERANCE * np.abs(wanted).max()).all())


def test_a_surface_is_zero_dense_and_aligned(device: Device) -> None:
    buffer = device.allocate(surface(1, 3, 1, 32))
    assert buffer.type == surface(1, 3, 1, 32)
    assert buffer.array.shape == (1, 3, 1, 32)
    assert buffer.array.dtype == np.float16
    assert buffer.array.flags.c_contiguous
    assert buffer.array.flags.writeable
    assert buffer.array.ctypes.data % 64 == 0
    assert not buffer.array.any()


def test_ports_come_in_the_order_of_the_text(device: Device) -> None:
    ready = load(device, training_like())
    assert ready.inputs == (surface(1, 64, 1, 96), surface(1, 1, 32, 64))
    assert ready.outputs == (surface(1, 32, 1, 96), surface(1, 64, 1, 96), surface(1, 32, 1, 64))


def test_numbers_are_those_of_the_evaluator(device: Device) -> None:
    program = training_like()
    ready = load(device, program)
    given, results = buffers(device, ready)
    rng = np.random.default_rng(0)
    for buffer in given:
        buffer.array[...] = rng.standard_normal(buffer.array.shape)
    device.run(ready, given, results)
    wanted = evaluate(program, {var.name: buffer.array for var, buffer in zip(program.inputs, given)})
    for buffer, var in zip(results, program.outputs):
        assert near(buffer.array, wanted[var.name]), var.name


def test_weights_come_from_the_file_that_the_text_names(device: Device) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 64)).astype(np.float16)
    data, offsets = weights(weight.reshape(32, 64, 1, 1))
    assert offsets == [64]
    ready = device.load(LINEAR, {FILE: data})
    given, results = buffers(device, ready)
    given[0].array[...] = rng.standard_normal((1, 64, 1, 96))
    device.run(ready, given, results)
    assert near(results[0].array[0, :, 0], weight.astype(np.float64) @ given[0].array[0, :, 0].astype(np.float64))


def test_a_program_runs_again_on_other_surfaces_and_keeps_nothing(device: Device) -> None:
    ready = load(device, training_like())
    first, second = buffers(device, ready), buffers(device, ready)
    rng = np.random.default_rng(0)
    for given, _ in (first, second):
        for buffer in given:
            buffer.array[...] = rng.standard_normal(buffer.array.shape)
    device.run(ready, *first)
    kept = [buffer.array.copy() for buffer in first[1]]
    device.run(ready, *second)
    assert all(np.array_equal(buffer.array, array) for buffer, array in zip(first[1], kept))
    device.run(ready, first[0], second[1])
    assert all(np.array_equal(buffer.array, array) for buffer, array in zip(second[1], kept))


def test_a_result_of_one_program_is_the_input_of_the_next(device: Device) -> None:
    b = Builder()
    doubled = load(device, b.program(b.add(x=b.input("a0_x", (1, 8, 1, 32)), y=1.0, name="z0_y")))
    surfaces = [device.allocate(surface(1, 8, 1, 32)) for _ in range(4)]
    for source, target in pairwise(surfaces):
        device.run(doubled, [source], [target])
    assert (surfaces[-1].array == 3).all()


def test_many_ports(device: Device) -> None:
    b = Builder()
    inputs = [b.input(f"a{i:02d}_x", (1, 4, 1, 32)) for i in range(30)]
    program = b.program(*(b.add(x=x, y=inputs[0], name=f"z{i:02d}_y") for i, x in enumerate(inputs)))
    ready = load(device, program)
    given, results = buffers(device, ready)
    for value, buffer in enumerate(given):
        buffer.array[...] = value + 1
    device.run(ready, given, results)
    assert [buffer.array[0, 0, 0, 0].item() for buffer in results] == [value + 2 for value in range(30)]


def test_threads_may_share_a_device(device: Device) -> None:
    ready = load(device, training_like())
    rng = np.random.default_rng(0)
    sets = [buffers(device, ready) for _ in range(3)]
    wanted = []
    for given, results in sets:
        for buffer in given:
            buffer.array[...] = rng.standard_normal(buffer.array.shape)
        device.run(ready, given, results)
        wanted.append([buffer.array.copy() for buffer in results])

    def work(given: list[Buffer], results: list[Buffer]) -> None:
        for _ in range(20):
            device.run(ready, given, results)

    workers = [threading.Thread(target=work, args=one) for one in sets]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for (_, results), arrays in zip(sets, wanted):
        assert all(np.array_equal(buffer.array, array) for buffer, array in zip(results, arrays))


def test_the_stats_are_counted_from_the_text(device: Device) -> None:
    stats = load(device, training_like()).stats
    assert stats.float_ops == {"matmul": 2, "reshape": 4, "reduce_sum": 1, "mul": 3, "add": 1, "pow": 1, "softmax": 1, "identity": 1}
    assert stats.ops == 14
    assert stats.macs == 2 * 32 * 64 * 96


@pytest.mark.parametrize(
    ("text", "blobs", "complaint"),
    [
        ("program(1.3)\nnonsense", {}, "layer7"),
        (LINEAR, {}, "weight.bin"),
        (LINEAR, {FILE: b""}, "layer7"),
        (LINEAR, {FILE: weights(np.zeros(3, np.float16))[0]}, "layer7"),
        (LINEAR.replace("conv(", "convolve("), {FILE: weights(np.zeros((32, 64, 1, 1), np.float16))[0]}, "convolve"),
        (LINEAR.replace("[1, 32, 1, 96]> z0_y", "[1, 32, 1, 64]> z0_y"), {FILE: weights(np.zeros((32, 64, 1, 1), np.float16))[0]}, "z0_y"),
    ],
)
def test_a_text_that_is_no_program_is_refused_by_name(device: Device, text: str, blobs: dict[str, bytes], complaint: str) -> None:
    with pytest.raises(DeviceError, match=complaint):
        device.load(text, blobs, name="layer7")


def test_an_op_that_the_device_lacks_is_named_with_its_program(device: Device) -> None:
    b = Builder()
    x = b.input("a0_x", (1, 8, 1, 32))
    with pytest.raises(DeviceError, match=r"layer7.*cumsum"):
        load(device, b.program(b.cumsum(x=x, name="z0_y")), "layer7")


@pytest.mark.parametrize(
    ("ports", "complaint"),
    [
        (lambda given, results: (given[:1], results), "input"),
        (lambda given, results: (given, [*results, results[0]]), "output"),
        (lambda given, results: (given[::-1], results), "shape"),
        (lambda given, results: (given, [results[0], results[2], results[1]]), "shape"),
        (lambda given, results: (given, [results[0], given[0], results[2]]), "shares memory"),
    ],
)
def test_surfaces_that_do_not_fit_the_ports_are_refused(device: Device, ports: object, complaint: str) -> None:
    ready = load(device, training_like(), "layer7")
    with pytest.raises(DeviceError, match=f"layer7.*{complaint}"):
        device.run(ready, *ports(*buffers(device, ready)))  # type: ignore[operator]


def added(value: float) -> Program:
    b = Builder()
    return b.program(b.add(x=b.input("a0_x", (1, 8, 1, 32)), y=value, name="z0_y"))


def test_the_arithmetic_and_the_limits_are_declared(device: Device) -> None:
    assert device.arithmetic in ("exact", "engine")
    limits = device.limits
    assert limits.loaded_programs is None or limits.loaded_programs > 0
    assert limits.ports is None or limits.ports >= 60
    assert limits.row_multiple >= 1
    assert not device.wrong_ops


def test_an_overflow_that_the_program_gives_is_not_the_devices_fault(device: Device) -> None:
    ready = load(device, added(60_000.0), "layer7")
    given, results = buffers(device, ready)
    given[0].array[...] = 60_000.0
    device.run(ready, given, results)
    before = results[0].look().copy()
    assert not device.confirm(ready, given, results)
    assert np.array_equal(results[0].look(), before)


def test_a_program_beyond_the_limits_is_refused_with_its_name_and_the_number(device: Device) -> None:
    limits = device.limits
    if limits.ports is not None:
        b = Builder()
        inputs = [b.input(f"a{i:03d}_x", (1, 4, 1, 32)) for i in range(limits.ports)]
        with pytest.raises(DeviceError, match=f"layer7.*{limits.ports + 1} ports"):
            load(device, b.program(b.add(x=inputs[0], y=inputs[-1], name="z0_y")), "layer7")
    if limits.row_multiple > 1:
        b = Builder()
        with pytest.raises(DeviceError, match=f"layer7.*a0_x.*multiple of {limits.row_multiple}"):
            load(device, b.program(b.add(x=b.input("a0_x", (1, 4, 1, limits.row_multiple + 1)), y=1.0, name="z0_y")), "layer7")


def test_programs_beyond_the_cap_are_loaded_when_they_run(device: Device) -> None:
    """And the numbers are those of a device with room for all."""
    cap, before = device.limits.loaded_programs, device.loaded
    programs = [load(device, added(value), f"layer{value}") for value in range(1, 6)]
    assert device.loaded == (before + 5 if cap is None else min(cap, before + 5))
    x, y = device.allocate(surface(1, 8, 1, 32)), device.allocate(surface(1, 8, 1, 32))
    for _ in range(2):
        for value, program in enumerate(programs, 1):
            device.run(program, [x], [y])
            assert (y.array == value).all()
            assert cap is None or device.loaded <= cap


def test_an_unloaded_program_runs_again(device: Device) -> None:
    program = load(device, added(1))
    surfaces = [device.allocate(surface(1, 8, 1, 32)) for _ in range(2)]
    for _ in range(2):
        device.run(program, surfaces[:1], surfaces[1:])
        assert (surfaces[1].array == 1).all()
        surfaces[1].array[...] = 0
        device.unload(program)
        device.unload(program)


def test_what_is_submitted_is_carried_out_in_order_until_it_is_waited_for(device: Device) -> None:
    programs = [load(device, added(value)) for value in (1, 2, 4)]
    surfaces = [device.allocate(surface(1, 8, 1, 32)) for _ in range(4)]
    submitted = [device.submit(program, [x], [y]) for program, (x, y) in zip(programs, pairwise(surfaces), strict=True)]
    device.wait(submitted[-1])
    assert [int(buffer.array[0, 0, 0, 0]) for buffer in surfaces] == [0, 1, 3, 7]
    for one in submitted:
        device.wait(one)


def test_a_run_comes_after_what_was_submitted_before_it(device: Device) -> None:
    doubled, surfaces = load(device, added(1)), [device.allocate(surface(1, 8, 1, 32)) for _ in range(9)]
    for source, target in pairwise(surfaces[:-1]):
        device.submit(doubled, [source], [target])
    device.run(doubled, surfaces[-2:-1], surfaces[-1:])
    assert (surfaces[-1].array == 8).all()


def test_a_submitted_run_that_fails_says_so_and_those_behind_it_are_not_carried_out(device: Device) -> None:
    first, second = load(device, added(1), "layer7"), load(device, added(2), "layer8")
    x, y, z = (device.allocate(surface(1, 8, 1, 32)) for _ in range(3))
    failing, behind = device.submit(first, [x, x], [y]), device.submit(second, [y], [z])
    with pytest.raises(DeviceError, match="layer7 has 1 inputs|layer7.*input"):
        device.wait(failing)
    with pytest.raises(DeviceError, match="layer8: it was not run, since layer7, which was submitted before it, failed"):
        device.wait(behind)
    assert not z.array.any()
    device.run(first, [x], [y])
    device.wait(device.submit(second, [y], [z]))
    assert (z.array == 3).all()


def test_the_next_run_raises_what_nobody_waited_for(device: Device) -> None:
    program = load(device, added(1), "layer7")
    x, y = device.allocate(surface(1, 8, 1, 32)), device.allocate(surface(1, 8, 1, 32))
    device.submit(program, [], [y])
    with pytest.raises(DeviceError, match="layer7"):
        device.run(program, [x], [y])
    device.run(program, [x], [y])
    assert (y.array == 1).all()


def test_a_surface_may_be_larger_than_its_type(device: Device) -> None:
    type_ = surface(1, 8, 1, 32)
    assert device.allocate(type_).capacity_bytes >= type_.size_bytes
    x, y = device.allocate(type_, capacity_bytes=200_000), device.allocate(type_, capacity_bytes=1)
    assert x.capacity_bytes >= 200_000
    assert y.capacity_bytes >= type_.size_bytes
    assert x.type == type_ and x.array.shape == type_.shape
    assert x.array.flags.c_contiguous and x.array.ctypes.data % 64 == 0 and not x.array.any()
    device.run(load(device, added(1)), [x], [y])
    assert (y.array == 1).all()


def test_who_only_looks_sees_what_the_array_holds(device: Device) -> None:
    buffer = device.allocate(surface(1, 8, 1, 32))
    buffer.array[...] = 3
    assert np.array_equal(buffer.look(), buffer.array)


def test_a_surface_holds_fp16(device: Device) -> None:
    program = parse(HEAD + '{ func main<ios18>(tensor<fp32, [1, 8, 1, 32]> x) { tensor<fp32, [1, 8, 1, 32]> y = exp(x = x)[name = string("y")]; } -> (y); }')
    with pytest.raises(TorchaneError, match="fp32"):
        device.allocate(program.inputs[0].type)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="layer7"):
        load(device, program, "layer7")
