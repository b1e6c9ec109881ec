"""What does a dispatch cost outside the engine, and does anything grow?    python benchmarks/bridge.py [--cycles N]

The bridge and the `ane` device on the stand-in for Apple's framework (tests/apple, Linux with GNUstep), whose dispatches
write zeros and compute nothing. A layer's program: 12 inputs, 3 outputs, surfaces that the host does not touch in between.
Microseconds of processor time per dispatch, median of 25 rounds of 500; in each round zeros, bridge, device and executor follow one another,
and the stand-in's own writing of zeros is taken off within the round. The executor's is a plan of 500 dispatches whose results nobody
keeps. Then load, evaluate, unload, N times, and what memory, handles and open
files did. It says nothing of a Mac. Last line: JSON.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "apple"))

import numpy as np
import standin

from torchane.abi.ports import PortLayout
from torchane.mil.build import Builder
from torchane.mil.name_constants import name_constants
from torchane.mil.save import emit
from torchane.plan import Copy, Dispatch, Plan, PortSpec, ProgramSpec, Stage
from torchane.runtime.ane import AneDevice, framework
from torchane.runtime.ane.cache import CompileCache
from torchane.runtime.execute import Executor
from torchane.runtime.numerics import LossScaled
from torchane.runtime.surfaces import SurfacePool
from torchane.runtime.twin import TwinDevice
from torchane.runtime.weights import Weights

INPUTS, OUTPUTS, ROUNDS, DISPATCHES = 12, 3, 25, 500


def layer() -> tuple[str, dict[str, bytes]]:
    b = Builder()
    inputs = [b.input(f"a{i:02d}_x", (1, 32, 1, 64)) for i in range(INPUTS)]
    return emit(name_constants(b.program(*(b.add(x=inputs[i], y=inputs[-1 - i], name=f"z{i:02d}_y") for i in range(OUTPUTS)))))


def per_call_us(act: Callable[[], object]) -> float:
    start = time.process_time()
    for _ in range(DISPATCHES):
        act()
    return (time.process_time() - start) / DISPATCHES * 1e6


class ArrayHost:
    """Arrays as a framework's tensors."""

    array = staticmethod(np.asarray)
    empty = staticmethod(lambda name, shape: (found := np.empty(shape, np.float32), found))
    finish = staticmethod(lambda name, value: value)
    wrap = staticmethod(lambda view: view)
    place = input = staticmethod(lambda name: "")
    address = staticmethod(lambda value: value.ctypes.data)


def executor_us(device: AneDevice | TwinDevice) -> Callable[[], float]:
    """Of a plan: everything that a dispatch costs but its arithmetic, taking and giving back surfaces included. Measures when it is called."""
    text, blobs = layer()
    loaded = device.load(text, blobs, name="layer")
    ports = [PortSpec(f"p{i}", PortLayout(port.shape, (0, 1, 2, 3), port.shape, port.shape[3])) for i, port in enumerate((*loaded.inputs, *loaded.outputs))]
    spec = ProgramSpec("layer", text, blobs, tuple(ports[:INPUTS]), tuple(ports[INPUTS:]), {}, 0)
    names = tuple(f"x{i}" for i in range(INPUTS))
    stage = Stage(tuple(Copy(name, port.layout) for name, port in zip(names, spec.inputs, strict=True)))
    runs = [Dispatch(0, names, tuple(f"y{n}_{i}" for i in range(OUTPUTS)), "layer") for n in range(DISPATCHES)]
    given = [np.ones(port.layout.logical, np.float32) for port in spec.inputs]

    def executor(dispatches: list[Dispatch]) -> Executor:
        plan = Plan("forward", names, (), (spec,), (stage, *dispatches), frozenset(), {}, frozenset(), {}, False)
        return Executor(plan, device, SurfacePool(device), Weights(), ArrayHost(), {}, [loaded], LossScaled())

    def seconds(run: Executor) -> float:
        start = time.process_time()
        run(given)
        return time.process_time() - start

    many, none = executor(runs), executor([])
    many(given), none(given)
    return lambda: (seconds(many) - seconds(none)) / DISPATCHES * 1e6


def resident_kb() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def dispatch_cost(device: AneDevice, machine: standin.StandIn) -> dict[str, float]:
    text, blobs = layer()
    loaded = device.load(text, blobs, name="layer")
    given, results = ([device.allocate(port) for port in ports] for ports in (loaded.inputs, loaded.outputs))
    device.run(loaded, given, results)  # the first is compared with the twin
    size_bytes = loaded.outputs[0].size_bytes
    machine.skip_evaluation(output_bytes=size_bytes)
    device.verifies = False  # zeros are not the sums; a comparison is one in thousands of dispatches
    surfaces = [b.surface for b in given], [b.surface for b in results]
    zeros = [np.empty(size_bytes, np.uint8) for b in results]
    subjects = {
        "zeros": lambda: per_call_us(lambda: [array.fill(0) for array in zeros]),
        "bridge": lambda: per_call_us(lambda: loaded.ready.run(*surfaces)),
        "device and bridge": lambda: per_call_us(lambda: device.run(loaded, given, results)),
        "executor, device and bridge": executor_us(device),
    }
    rounds = [{name: measure() for name, measure in subjects.items()} for _ in range(ROUNDS)]
    machine.skip_evaluation(False)
    device.verifies = True
    found = {name: statistics.median(one[name] for one in rounds) for name in subjects}
    found |= {f"{name}, without zeros": statistics.median(one[name] - one["zeros"] for one in rounds) for name in list(subjects)[1:]}
    return found


def growth(device: AneDevice, machine: standin.StandIn, cycles: int) -> dict[str, dict[str, int]]:
    text, blobs = layer()
    loaded = device.load(text, blobs, name="layer")
    given, results = ([device.allocate(port) for port in ports] for ports in (loaded.inputs, loaded.outputs))

    def state() -> dict[str, int]:
        gc.collect()
        live = machine.live()
        return {"resident_kb": resident_kb(), "files": open_files(), **{key: live[key] for key in ("surfaces", "models", "requests")}}

    machine.skip_evaluation()
    device.verifier.differences = lambda *_: []  # type: ignore[method-assign]  # zeros are not the sums
    before: dict[str, int] = {}
    for cycle in range(cycles):
        if cycle == cycles // 10:
            before = state()
        device.run(loaded, given, results)
        device.unload(loaded)
    return {"before": before, "after": state()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cycles", type=int, default=10_000, help="load, evaluate, unload")
    cycles = parser.parse_args().cycles
    with tempfile.TemporaryDirectory() as folder:
        machine = standin.StandIn(standin.build(Path(folder)), Path(folder) / "daemon")
        found = framework.opened([str(machine.path)])
        device = AneDevice(found, cache=CompileCache(Path(folder) / "cache", found.build))
        cost = dispatch_cost(device, machine)
        for name, us in cost.items():
            print(f"{name:42} {us:7.2f} us a dispatch")
        grown = growth(device, machine, cycles)
        for name in grown["after"]:
            print(f"{name:28} {grown['before'][name]:,} after {cycles // 10:,} cycles, {grown['after'][name]:,} after {cycles:,}")
        device.close()
        assert machine.loaded == 0 and not machine.errors
    print(json.dumps({"us_per_dispatch": cost, "cycles": cycles, "growth": grown}))


if __name__ == "__main__":
    main()
