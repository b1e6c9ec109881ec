"""Before the engine is trusted: three small programs in a child process, route by route.

    two inputs, two outputs, names that sort the other way     are ports bound right?
    a convolution with weights from a file                     are constants read?
    a product of two inputs of different sizes                 may surfaces differ in size?

A crash or a hang of the framework is then the child's, and a finding. What was found is kept per build of the system.
`python -m torchane.runtime.ane.first_light` prints it as one line of JSON.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchane.errors import AppleError, DeviceError, MissingDeviceError, TorchaneError
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Program
from torchane.mil.name_constants import name_constants
from torchane.mil.save import emit
from torchane.runtime.ane import framework
from torchane.runtime.ane.cache import CompileCache
from torchane.runtime.ane.device import AneDevice
from torchane.runtime.ane.source import FORM

#: The whole of it, in a child: the first compilation after an update of macOS takes minutes.
LIMIT_S = 600.0
#: An engine sums in its own order and format; the twin's contract allows the same.
TOLERANCE = 2.0**-8


@dataclass(frozen=True)
class Light:
    """route: the first that works, empty if none does. tried: by route, empty or what went wrong. equal_surfaces: whether this
    system wants all surfaces of a program in one size."""

    route: str
    tried: Mapping[str, str]
    equal_surfaces: bool
    build: str


def look(found: framework.Framework, folder: Path, patience: float = 1.0) -> Light:
    """Tries the routes that can be used, in this process. folder: for the programs."""
    tried = {}
    for route in found.usable:
        for equal in (False, True):
            try:
                device = AneDevice(found, route, cache=CompileCache(folder, found.build), equal_surfaces=equal, verify_every=0, patience=patience)
                try:
                    for name, program in programs().items():
                        _require_right(device, name, program)
                finally:
                    device.close()
            except (DeviceError, AppleError) as error:
                tried[route] = str(error)
                continue
            return Light(route, {**tried, route: ""}, equal, found.build)
    return Light("", tried, False, found.build)


def programs() -> dict[str, Program]:
    """Small programs that go wrong in the ways that are known."""
    b = Builder()
    z, a = b.input("z9_x", (1, 64, 1, 64)), b.input("a0_y", (1, 64, 1, 64))
    ports = b.program(b.sub(x=z, y=a, name="y2"), b.add(x=b.mul(x=z, y=2.0), y=a, name="y"))
    b = Builder()
    weight = (np.arange(32 * 64) % 17 - 8).astype(np.float16).reshape(32, 64, 1, 1) / 16
    constants = b.program(b.conv(x=b.input("a0_x", (1, 64, 1, 64)), weight=weight, name="z0_y"))
    b = Builder()
    x, w = b.input("a0_x", (1, 1, 64, 1024)), b.input("a1_w", (1, 1, 1024, 32))
    sizes = b.program(b.matmul(x=x, y=w, name="z0_y"))
    return {"first light, ports": ports, "first light, constants": constants, "first light, sizes": sizes}


def _require_right(device: AneDevice, name: str, program: Program) -> None:
    """Raises DeviceError where the engine refuses or its numbers are wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a quarantine is told apart below
        named = name_constants(program)
        text, blobs = emit(named)
        loaded = device.load(text, blobs, name=name)
        given = [device.allocate(port) for port in loaded.inputs]
        results = [device.allocate(port) for port in loaded.outputs]
        rng = np.random.default_rng(0)
        for buffer in given:
            buffer.array[...] = rng.standard_normal(buffer.array.shape) / 8
        device.run(loaded, given, results)
    if loaded.quarantine:
        raise DeviceError(f"{name}: {loaded.quarantine}")
    want = evaluate(program, {var.name: buffer.array for var, buffer in zip(program.inputs, given)})
    for buffer, var in zip(results, program.outputs):
        right = want[var.name].astype(np.float64)
        off = float(np.abs(buffer.array - right).max())
        if off > TOLERANCE * float(np.abs(right).max()):
            raise DeviceError(f"{name}: output {var.name} is up to {off:.3g} off, of numbers up to {np.abs(right).max():.3g}")


def in_child(folder: Path, command: Sequence[str] | None = None) -> Light:
    """`look` in a process of its own; the record of an earlier one, if it is of this build and worked.
    Raises MissingDeviceError that says what went wrong."""
    command = command or [sys.executable, "-m", "torchane.runtime.ane.first_light"]
    try:
        done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise MissingDeviceError(
            f"The Neural Engine did not answer within {LIMIT_S:.0f} s to three small programs, tried in a process of their own. "
            f"Restart the Mac and try again. {framework.TAKE_THE_TWIN}"
        ) from None
    try:
        said = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        ended = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"ended with {done.returncode}"
        raise MissingDeviceError(
            f"Apple's framework did not survive three small programs: the process that tried them {ended}; its last words: {last}. "
            f"Please report it. {framework.TAKE_THE_TWIN}"
        ) from None
    if "missing" in said:
        raise MissingDeviceError(said["missing"])
    return Light(**said)


def require(found: framework.Framework, root: Path, tell: Callable[[Path], Light] | None = None) -> Light:
    """What first light found on this build, from its record or anew. Raises MissingDeviceError where no route works, DeviceError where
    the folder cannot be used."""
    CompileCache(root, found.build).require_usable()  # else each route would seem to fail
    record = root / f"first-light-{FORM}.json"
    light = _kept(record, found)
    if light is None:
        light = (tell or in_child)(root / "first-light")
        if light.route:
            _keep(record, light)
    if not light.route:
        lines = "; ".join(f"{route}: {why}" for route, why in light.tried.items()) or "no route can be used"
        raise MissingDeviceError(f"The Neural Engine did not pass three small programs. {lines}. {framework.TAKE_THE_TWIN}")
    return light


def _kept(record: Path, found: framework.Framework) -> Light | None:
    """None where there is none that fits this system: it is then found anew."""
    try:
        light = Light(**json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    is_whole = light.build == found.build and light.route in found.usable and isinstance(light.equal_surfaces, bool)
    return light if is_whole else None


def _keep(record: Path, light: Light) -> None:
    try:
        record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        record.write_text(json.dumps(asdict(light)), encoding="utf-8")
    except OSError:
        pass  # found anew next time; the compile cache will say what is wrong with the folder


def main(arguments: Sequence[str]) -> int:
    folder = Path(arguments[0]) if arguments else Path(tempfile.mkdtemp(prefix="torchane-"))
    said: dict[str, Any]
    try:
        said = asdict(look(framework.find(), folder))
    except TorchaneError as error:
        said = {"missing": str(error)}
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
