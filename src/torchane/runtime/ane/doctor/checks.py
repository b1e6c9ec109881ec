"""What doctor looks at on an engine, check by check. Each takes an open device and gives a dict that JSON can hold.

group        what                                                            known from
ops          each op of `portable` in a small program                        chips/portable.toml
arithmetic   the engine's rules, each in the one place where it shows        mil/engine
probes       what public reports disagree on                                 names as in the probes' docstrings
times        a dispatch, staging, products of several shapes                 -

Numbers are compared with the twin twice, in the engine's arithmetic and in `exact`: the share that is equal to the bit, and
the largest distance in steps of fp16. `ok` is what a training run needs; the rest is for the reader.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchane import native
from torchane.errors import AppleError
from torchane.mil.build import Builder
from torchane.mil.ir import Program, Var
from torchane.mil.name_constants import name_constants
from torchane.mil.save import WEIGHT_PATH, emit
from torchane.runtime.ane.device import AneDevice
from torchane.runtime.ane.source import places, source_of
from torchane.runtime.twin import TwinDevice, load_program, read_program

SHAPE = (1, 64, 1, 64)
#: How far numbers may be from the twin's, relative to the largest: the tolerance of the contract that both keep.
TOLERANCE = 2.0**-8
#: A throughput check repeats its program for so long, at most so often.
TIMED_S, TIMED_RUNS = 0.5, 200

Finding = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """needed: without it the engine is not used. quick: part of a short look."""

    name: str
    group: str
    run: Callable[[AneDevice], Finding]
    needed: bool = False
    quick: bool = False


def all_checks() -> list[Check]:
    return [*_ops(), *_arithmetic(), *_probes(), *_times()]


# Numbers beside the twin's


def numbers(device: AneDevice, program: Program, arrays: dict[str, np.ndarray]) -> tuple[list[np.ndarray], Any]:
    """The engine's outputs, and the loaded program. Raises DeviceError where it is refused."""
    text, blobs = emit(name_constants(program))
    loaded = device.load(text, blobs, name=program.outputs[0].name)
    given = [device.allocate(port) for port in loaded.inputs]
    results = [device.allocate(port) for port in loaded.outputs]
    for buffer, var in zip(given, program.inputs, strict=True):
        buffer.array[...] = arrays[var.name]
    device.run(loaded, given, results)
    return [buffer.array.copy() for buffer in results], loaded


def beside_the_twin(device: AneDevice, program: Program, arrays: dict[str, np.ndarray]) -> Finding:
    got, _ = numbers(device, program, arrays)
    found: Finding = {}
    for arithmetic in ("engine", "exact"):
        want = _twins(program, arrays, arithmetic)
        found[f"equal to {arithmetic}"] = round(_share(got, want), 6)
        found[f"steps from {arithmetic}"] = max(_steps(one, right) for one, right in zip(got, want, strict=True))
        if arithmetic == "engine":
            found["ok"] = all(_is_near(one, right) for one, right in zip(got, want, strict=True))
    return found


def _twins(program: Program, arrays: dict[str, np.ndarray], arithmetic: str) -> list[np.ndarray]:
    text, blobs = emit(name_constants(program))
    ready = load_program(read_program(text, blobs, "doctor"), "doctor", arithmetic)
    outputs = [np.empty(port.shape, np.float16) for port in ready.outputs]  # type: ignore[arg-type]
    inputs = [np.ascontiguousarray(arrays[var.name], np.float16) for var in program.inputs]
    TwinDevice(arithmetic=arithmetic).run_arrays(ready, inputs, outputs)
    return outputs


def _share(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    same = [(one == right) | (np.isnan(one) & np.isnan(right)) for one, right in zip(got, want, strict=True)]
    return float(np.concatenate([array.reshape(-1) for array in same]).mean())


def _steps(got: np.ndarray, want: np.ndarray) -> int:
    """The largest distance in numbers of fp16 that lie between; what is not finite on one side only counts as 65536."""

    def place(array: np.ndarray) -> np.ndarray:
        bits = array.view(np.int16).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    finite = np.isfinite(got) & np.isfinite(want)
    if (np.isfinite(got) != np.isfinite(want)).any():
        return 1 << 16
    return int(np.abs(place(got) - place(want))[finite].max(initial=0))


def _is_near(got: np.ndarray, want: np.ndarray) -> bool:
    finite = np.isfinite(want)
    largest = float(np.abs(want[finite].astype(np.float64)).max(initial=0.0))
    off = np.abs(got.astype(np.float64) - want)[finite]
    return bool((np.isfinite(got) == finite).all() and (off <= TOLERANCE * largest + 2.0**-20).all())


# Ops


def _ops() -> Iterator[Check]:
    for name, build in _op_programs().items():
        yield Check(f"op {name}", "ops", lambda device, build=build: _op(device, build), needed=True, quick=name in ("conv", "matmul", "softmax"))


def _op(device: AneDevice, build: Callable[[Builder, Var, Var], Var]) -> Finding:
    b = Builder()
    x, y = b.input("a0_x", SHAPE), b.input("a1_y", SHAPE)
    program = b.program(b.identity(x=build(b, x, y), name="z0_y"), b.add(x=x, y=y, name="z1_y"))
    rng = np.random.default_rng(0)
    arrays = {name: (rng.uniform(0.25, 2.0, SHAPE) * sign).astype(np.float16) for name, sign in (("a0_x", rng.choice([-1, 1], SHAPE)), ("a1_y", 1))}
    return beside_the_twin(device, program, arrays)


def _op_programs() -> dict[str, Callable[[Builder, Var, Var], Var]]:
    """Each op of the portable subset, of x (either sign) and y (positive), (1, 64, 1, 64) both."""
    weight = (np.random.default_rng(1).standard_normal((64, 64, 1, 1)) / 8).astype(np.float16)
    matrix = (1, 1, 64, 64)

    def product(b: Builder, x: Var, y: Var) -> Var:
        return b.reshape(x=b.matmul(x=b.reshape(x=x, shape=matrix), y=b.reshape(x=y, shape=matrix)), shape=SHAPE)

    return {
        "add": lambda b, x, y: b.add(x=x, y=y),
        "sub": lambda b, x, y: b.sub(x=x, y=y),
        "mul": lambda b, x, y: b.mul(x=x, y=y),
        "real_div": lambda b, x, y: b.real_div(x=x, y=y),
        "maximum": lambda b, x, y: b.maximum(x=x, y=y),
        "pow": lambda b, x, y: b.pow(x=y, y=-0.5),
        "sqrt": lambda b, x, y: b.sqrt(x=y),
        "exp": lambda b, x, y: b.exp(x=x),
        "tanh": lambda b, x, y: b.tanh(x=x),
        "sigmoid": lambda b, x, y: b.sigmoid(x=x),
        "conv": lambda b, x, y: b.conv(x=x, weight=weight),
        "matmul": product,
        "softmax": lambda b, x, y: b.softmax(x=x, axis=-1),
        "reduce_sum": lambda b, x, y: b.mul(x=x, y=b.reduce_sum(x=y, axes=(1,), keep_dims=True)),
        "reduce_max": lambda b, x, y: b.mul(x=y, y=b.reduce_max(x=x, axes=(3,), keep_dims=True)),
        "transpose": lambda b, x, y: b.transpose(x=x, perm=(0, 3, 2, 1)),
        "slice_by_size": lambda b, x, y: b.slice_by_size(x=x, begin=(0, 32, 0, 0), size=(1, 32, 1, 64)),
    }


# Arithmetic


def _arithmetic() -> Iterator[Check]:
    yield Check("arithmetic product window", "arithmetic", _product_window)
    yield Check("arithmetic ceiling", "arithmetic", _ceiling)
    yield Check("arithmetic sum order", "arithmetic", _sum_order)
    for name in ("exp", "tanh", "sigmoid", "sqrt"):
        yield Check(f"arithmetic table of {name}", "arithmetic", lambda device, name=name: _table(device, name))


def _matmul(device: AneDevice, x: np.ndarray, y: np.ndarray) -> Finding:
    b = Builder()
    product = b.matmul(x=b.input("a0_x", x.shape), y=b.input("a1_y", y.shape), name="z0_y")
    return beside_the_twin(device, b.program(product), {"a0_x": x.astype(np.float16), "a1_y": y.astype(np.float16)})


def _product_window(device: AneDevice) -> Finding:
    """Products from 2^-30 to 2^2, one in each sum: those below about 2^-16 vanish in the engine's rules."""
    x, y = np.zeros((1, 1, 32, 32)), np.zeros((1, 1, 32, 32))
    np.fill_diagonal(x[0, 0], 1.375 * 2.0 ** -np.arange(0.0, 16.0, 0.5))
    np.fill_diagonal(y[0, 0], 1.125 * 2.0 ** (2 - np.arange(0.0, 16.0, 0.5)))
    return _matmul(device, x, y)


def _ceiling(device: AneDevice) -> Finding:
    """Sums that pass 32768 on their way, and come back or do not."""
    x = np.full((1, 1, 32, 32), 120.0)
    x[0, 0, 1::2, 16:] = -120.0
    return _matmul(device, x, np.full((1, 1, 32, 32), 16.0) + np.arange(32) % 8)


def _sum_order(device: AneDevice) -> Finding:
    """Sums of 1,024 products whose rounding depends on the order."""
    rng = np.random.default_rng(2)
    return _matmul(device, rng.standard_normal((1, 1, 32, 1024)), rng.standard_normal((1, 1, 1024, 32)))


def _table(device: AneDevice, name: str) -> Finding:
    """A function at every finite fp16 number."""
    patterns = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = np.where(np.isfinite(patterns), patterns, np.float16(0)).reshape(1, 64, 1, 1024)
    b = Builder()
    program = b.program(getattr(b, name)(x=b.input("a0_x", x.shape), name="z0_y"))
    return beside_the_twin(device, program, {"a0_x": x})


# Probes


def _probes() -> Iterator[Check]:
    for probe in (_identifiers, _load_alone, _kept_compiled, _weight_files, _packed_blocks, _unequal_surfaces):
        name = (probe.__doc__ or "").split(":")[0]
        yield Check(f"probe {name}", "probes", probe)


def _one_conv(seed: int) -> tuple[str, dict[str, bytes]]:
    b = Builder()
    weight = np.random.default_rng(seed).standard_normal((32, 32, 1, 1)).astype(np.float16)
    return emit(name_constants(b.program(b.conv(x=b.input("a0_x", (1, 32, 1, 32)), weight=weight, name="z0_y"))))


def _made(device: AneDevice, folder: Path, text: str, weights: dict[str, bytes]) -> Any:
    """A program of the bridge, its files in a folder."""
    for path, data in {"model.mil": text.encode(), **weights}.items():
        target = folder / path.removeprefix("@model_path/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return native.apple.make(device.route, str(folder), text.encode(), list(weights.items()), ["a0_x"], ["z0_y"])


def _identifiers(device: AneDevice) -> Finding:
    """P1: do programs of one text and other weights have other identifiers?"""
    (text, one), (_, other) = _one_conv(0), _one_conv(1)
    with tempfile.TemporaryDirectory() as folder:
        names = [_made(device, Path(folder) / str(i), text, blobs).identifier for i, blobs in enumerate((one, other))]
    return {"identifiers differ": names[0] != names[1], "route has identifiers": bool(names[0])}


def _load_alone(device: AneDevice) -> Finding:
    """P3: does a load without a compilation compile by itself?"""
    text, blobs = _one_conv(2)
    made = source_of(text, blobs)
    with tempfile.TemporaryDirectory() as folder:
        ready = _made(device, Path(folder), made.text, dict(made.weights))
        try:
            ready.load()
        except AppleError as error:
            return {"loads": False, "error": str(error)}
        ready.unload()
    return {"loads": True}


def _kept_compiled(device: AneDevice) -> Finding:
    """P4: is a compiled program found again, and how long does it take to load?"""
    text, blobs = _one_conv(3)
    made = source_of(text, blobs)
    found: Finding = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in ("first", "second"):
            ready = _made(device, Path(folder), made.text, dict(made.weights))
            found[f"{turn}: is compiled"] = ready.is_compiled()
            start = time.perf_counter()
            if not ready.is_compiled():
                ready.compile()
            ready.load()
            found[f"{turn}: ready after ms"] = round((time.perf_counter() - start) * 1e3, 3)
            ready.unload()
    return found


def _chain(count: int) -> tuple[str, dict[str, bytes], np.ndarray, np.ndarray]:
    """`count` convolutions by different diagonal matrices: text, weights, an input and what must come out."""
    b = Builder()
    x = b.input("a0_x", (1, 32, 1, 32))
    value: Var = x
    scale = 1.0
    for index in range(count):
        factor = 1.0 + (index % 4) / 4 if index % 2 else 1.0 / (1.0 + (index % 4) / 4)
        half = np.float16(factor)
        scale *= float(half)
        weight = (np.eye(32) * half).astype(np.float16).reshape(32, 32, 1, 1)
        weight[0, 1, 0, 0] = np.float16(index * 2.0**-14)  # no two are equal
        value = b.conv(x=value, weight=weight)
    text, blobs = emit(name_constants(b.program(b.mul(x=value, y=1.0, name="z0_y"))))
    given = np.zeros((1, 32, 1, 32), np.float16)
    given[0, 2:] = 1.0  # rows that the odd entry does not reach
    return text, blobs, given, np.full((30, 32), scale)


def _run_chain(device: AneDevice, text: str, weights: dict[str, bytes], given: np.ndarray, want: np.ndarray) -> Finding:
    made = source_of(text, weights)
    with tempfile.TemporaryDirectory() as folder:
        ready = _made(device, Path(folder), made.text, dict(made.weights))
        try:
            ready.compile()
            ready.load()
        except AppleError as error:
            return {"compiles": False, "error": str(error)}
        try:
            attributes = ready.attributes()
            ready.bind(places(["a0_x"], False, attributes, "probe"), places(["z0_y"], True, attributes, "probe"), [given.nbytes])
            surfaces = [native.apple.Surface(device.route, given.nbytes) for _ in range(2)]
            arrays = [surface.memory[: given.nbytes].view(np.float16).reshape(given.shape) for surface in surfaces]
            arrays[0][...] = given
            ready.run(surfaces[:1], surfaces[1:])
            return {"compiles": True, "numbers are right": bool(np.allclose(arrays[1][0, 2:, 0], want, rtol=0.05))}
        finally:
            ready.unload()


def _weight_files(device: AneDevice) -> Finding:
    """P5: how many weight files may a program have?"""
    found: Finding = {}
    for count in (16, 17):
        text, blobs, given, want = _chain(count)
        found[f"{count} files"] = _run_chain(device, *_apart(text, blobs), given, want)
    return found


def _apart(text: str, blobs: dict[str, bytes]) -> tuple[str, dict[str, bytes]]:
    """Every constant in a file of its own, without the limit that `separated` keeps."""
    from torchane.mil.blobs import BlobFile, BlobWriter
    from torchane.mil.types import FP16

    packed = BlobFile.from_bytes(blobs[WEIGHT_PATH])
    files: dict[str, bytes] = {}
    for index, record in enumerate(packed.records()):
        writer = BlobWriter()
        writer.add(packed.read_as(record.offset, FP16), FP16)
        path = f"@model_path/weights/p{index:02d}.bin"
        files[path] = writer.to_bytes()
        text = text.replace(f'"{WEIGHT_PATH}"), offset = uint64({record.offset}))', f'"{path}"), offset = uint64(64))')
    return text, files


def _packed_blocks(device: AneDevice) -> Finding:
    """P5b: is each of 17 blocks of one file read at its own place?"""
    text, blobs, given, want = _chain(17)
    return _run_chain(device, text, blobs, given, want)


def _unequal_surfaces(device: AneDevice) -> Finding:
    """P9: may the surfaces of a program differ in size?"""
    if device.equal_surfaces:
        return {"may differ": False}
    b = Builder()
    program = b.program(b.matmul(x=b.input("a0_x", (1, 1, 64, 1024)), y=b.input("a1_y", (1, 1, 1024, 32)), name="z0_y"))
    rng = np.random.default_rng(0)
    arrays = {var.name: (rng.standard_normal(var.shape) / 8).astype(np.float16) for var in program.inputs}
    return {"may differ": beside_the_twin(device, program, arrays)["ok"]}


# Times


def _times() -> Iterator[Check]:
    yield Check("time of a dispatch", "times", lambda device: _timed(device, _adding(32), 0), quick=True)
    yield Check("time of staging", "times", _staging)
    for size, width in ((256, 256), (512, 512), (1024, 512), (2048, 512)):
        yield Check(f"time of conv {size} x {size}, width {width}", "times", lambda device, s=size, w=width: _timed(device, _conv(s, w), 2 * s * s * w))
    for size in (256, 512, 1024):
        yield Check(f"time of matmul {size}", "times", lambda device, s=size: _timed(device, _square(s), 2 * s**3), quick=size == 512)


def _adding(width: int) -> Program:
    b = Builder()
    return b.program(b.add(x=b.input("a0_x", (1, 32, 1, width)), y=1.0, name="z0_y"))


def _conv(size: int, width: int) -> Program:
    b = Builder()
    weight = (np.random.default_rng(0).standard_normal((size, size, 1, 1)) / size**0.5).astype(np.float16)
    return b.program(b.conv(x=b.input("a0_x", (1, size, 1, width)), weight=weight, name="z0_y"))


def _square(size: int) -> Program:
    b = Builder()
    return b.program(b.matmul(x=b.input("a0_x", (1, 1, size, size)), y=b.input("a1_y", (1, 1, size, size)), name="z0_y"))


def _timed(device: AneDevice, program: Program, flops: int) -> Finding:
    """Median of repeated dispatches on random numbers: zeros more than halve an engine's power."""
    text, blobs = emit(name_constants(program))
    loaded = device.load(text, blobs, name="doctor, timed")
    given = [device.allocate(port) for port in loaded.inputs]
    results = [device.allocate(port) for port in loaded.outputs]
    rng = np.random.default_rng(0)
    for buffer in given:
        buffer.array[...] = rng.standard_normal(buffer.array.shape) / 8
    device.run(loaded, given, results)
    times: list[float] = []
    while len(times) < 3 or (sum(times) < TIMED_S and len(times) < TIMED_RUNS):
        start = time.perf_counter()
        device.run(loaded, given, results)
        times.append(time.perf_counter() - start)
    median = float(np.median(times))
    found: Finding = {"median us": round(median * 1e6, 1), "10th to 90th percentile us": [round(float(q) * 1e6, 1) for q in np.percentile(times, (10, 90))]}
    if flops:
        found["TFLOPS"] = round(flops / median / 1e12, 4)
    return found


def _staging(device: AneDevice) -> Finding:
    """A million fp32 numbers rounded into a surface, and back."""
    from torchane.mil.types import FP16, TensorType

    surface = device.allocate(TensorType(FP16, (1, 1024, 1, 1024)))
    host = np.random.default_rng(0).standard_normal((1, 1024, 1, 1024)).astype(np.float32)
    back = np.empty_like(host)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        native.stage(surface.array, host)
        middle = time.perf_counter()
        native.unstage(back, surface.array)
        times.append((middle - start, time.perf_counter() - middle))
    there, again = np.median(times, axis=0)
    return {"in, GB/s of fp32": round(host.nbytes / there / 1e9, 2), "out, GB/s of fp32": round(host.nbytes / again / 1e9, 2)}
