"""What doctor's checks are made of: a program's numbers compared with the twin's, its time, and the programs that are timed.

Numbers are compared with the twin twice, in the engine's arithmetic and in `exact`: the share that is equal to the bit, and
the largest distance in steps of fp16.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchane import native
from torchane.mil.build import Builder
from torchane.mil.ir import Program
from torchane.mil.name_constants import name_constants
from torchane.mil.save import emit
from torchane.runtime.ane.device import AneDevice
from torchane.runtime.ane.verify import STEP
from torchane.runtime.device import Device
from torchane.runtime.twin import TwinDevice, load_program, read_program

#: How far numbers may be from the twin's, relative to the largest: the tolerance of the contract that both keep.
TOLERANCE = 2.0**-8
#: Of a finding: the root mean square of what numbers are off from the engine's rules, in steps of fp16 relative to that of the numbers.
OFF = "off, steps rms"
#: A throughput check repeats its program for so long, at most so often.
TIMED_S, TIMED_RUNS = 0.5, 200

#: Of what the checks of single ops are given.
SHAPE = (1, 64, 1, 64)

Finding = dict[str, Any]


def handed_over(device: AneDevice, folder: Path, text: str, weights: Mapping[str, bytes], inputs: Sequence[str], outputs: Sequence[str], bytes_alone: bool = False) -> Any:
    """A program of the bridge, neither compiled nor loaded, its files in a folder."""
    for path, data in {"model.mil": text.encode(), **weights}.items():
        target = folder / path.removeprefix("@model_path/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return native.apple.make(device.route, str(folder), text.encode(), list(weights.items()), list(inputs), list(outputs), bytes_alone)


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
        found[f"equal to {arithmetic}"] = round(share_equal(got, want), 6)
        found[f"steps from {arithmetic}"] = max(steps_apart(one, right) for one, right in zip(got, want, strict=True))
        if arithmetic == "engine":
            found["ok"] = all(is_near(one, right) for one, right in zip(got, want, strict=True))
            found[OFF] = round(max(_off(one, right) for one, right in zip(got, want, strict=True)), 3)
    return found


def _twins(program: Program, arrays: dict[str, np.ndarray], arithmetic: str) -> list[np.ndarray]:
    text, blobs = emit(name_constants(program))
    ready = load_program(read_program(text, blobs, "doctor"), "doctor", arithmetic)
    outputs = [np.empty(port.shape, np.float16) for port in ready.outputs]  # type: ignore[arg-type]
    inputs = [np.ascontiguousarray(arrays[var.name], np.float16) for var in program.inputs]
    TwinDevice(arithmetic=arithmetic).run_arrays(ready, inputs, outputs)
    return outputs


def share_equal(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    same = [(one == right) | (np.isnan(one) & np.isnan(right)) for one, right in zip(got, want, strict=True)]
    return float(np.concatenate([array.reshape(-1) for array in same]).mean())


def steps_apart(got: np.ndarray, want: np.ndarray) -> int:
    """The largest distance in numbers of fp16 that lie between; what is not finite on one side only counts as 65536."""

    def place(array: np.ndarray) -> np.ndarray:
        bits = array.view(np.int16).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    finite = np.isfinite(got) & np.isfinite(want)
    if (np.isfinite(got) != np.isfinite(want)).any():
        return 1 << 16
    return int(np.abs(place(got) - place(want))[finite].max(initial=0))


def _off(got: np.ndarray, want: np.ndarray) -> float:
    """Of what is finite on both sides."""
    finite = np.isfinite(got) & np.isfinite(want)
    right = want[finite].astype(np.float64)
    size = float(np.sqrt(np.mean(np.square(right)))) if right.size else 0.0
    return float(np.sqrt(np.mean(np.square(got[finite] - right)))) / size / STEP if size else 0.0


def is_near(got: np.ndarray, want: np.ndarray) -> bool:
    finite = np.isfinite(want)
    largest = float(np.abs(want[finite].astype(np.float64)).max(initial=0.0))
    off = np.abs(got.astype(np.float64) - want)[finite]
    return bool((np.isfinite(got) == finite).all() and (off <= TOLERANCE * largest + 2.0**-20).all())


def adding(width: int, channels: int = 32) -> Program:
    b = Builder()
    return b.program(b.add(x=b.input("a0_x", (1, channels, 1, width)), y=1.0, name="z0_y"))


def conv(size: int, width: int, outputs: int = 0) -> Program:
    """1 x 1, of `size` channels to `outputs`, or as many."""
    b = Builder()
    weight = (np.random.default_rng(0).standard_normal((outputs or size, size, 1, 1)) / size**0.5).astype(np.float16)
    return b.program(b.conv(x=b.input("a0_x", (1, size, 1, width)), weight=weight, name="z0_y"))


def square(size: int) -> Program:
    b = Builder()
    return b.program(b.matmul(x=b.input("a0_x", (1, 1, size, size)), y=b.input("a1_y", (1, 1, size, size)), name="z0_y"))


def repeated(device: Device, program: Program) -> Callable[[], None]:
    """The program loaded, its inputs random (zeros more than halve an engine's power) and resident; a call runs it once."""
    text, blobs = emit(name_constants(program))
    loaded = device.load(text, blobs, name="timed")
    given = [device.allocate(port) for port in loaded.inputs]
    results = [device.allocate(port) for port in loaded.outputs]
    rng = np.random.default_rng(0)
    for buffer in given:
        buffer.array[...] = rng.standard_normal(buffer.array.shape) / 8
    return lambda: device.run(loaded, given, results)


def times_of(run: Callable[[], None], budget_s: float = TIMED_S, most: int = TIMED_RUNS) -> list[float]:
    """Seconds of each of at least three runs, after one that is not counted."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget_s and len(times) < most):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def timed(device: Device, program: Program, flops: int) -> Finding:
    """The median of repeated dispatches."""
    times = times_of(repeated(device, program))
    median = float(np.median(times))
    found: Finding = {"median us": round(median * 1e6, 1), "10th to 90th percentile us": [round(float(q) * 1e6, 1) for q in np.percentile(times, (10, 90))]}
    if flops:
        found["TFLOPS"] = round(flops / median / 1e12, 4)
    return found
