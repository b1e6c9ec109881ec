"""What `torchane run` does: values in from .npy files, a program on the twin or in NumPy, values out."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from torchane import mil
from torchane.errors import DeviceError, ParseError, TorchaneError, UsageError
from torchane.inspect.recognize import load_program
from torchane.mil.formats import narrowed
from torchane.mil.ir import Function, Program, walk
from torchane.mil.types import FP16, StateType
from torchane.runtime.twin import TwinDevice
from torchane.runtime.twin_ops import RULES

#: Element types that a .npy may hold: booleans, integers, floats.
_NUMERIC = "biuf"


@dataclass(frozen=True)
class Output:
    """One result, and where it was written, if it was."""

    value: np.ndarray
    path: str | None

    def describe(self) -> str:
        finite = self.value[np.isfinite(self.value)] if self.value.dtype.kind == "f" else self.value
        bounds = f", {finite.min()} to {finite.max()}" if finite.size else ""
        unusual = self.value.size - finite.size
        where = f" -> {self.path}" if self.path else ""
        return (
            f"{self.value.dtype} {list(self.value.shape)}{bounds}{f', {unusual} not finite' if unusual else ''}{where}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {"dtype": str(self.value.dtype), "shape": list(self.value.shape), "path": self.path}


@dataclass(frozen=True)
class Done:
    """One run. ran_on: `twin` or `numpy`; without_kernel: kinds of ops that the twin lacks; reason: why it was not
    the twin, for a person."""

    ran_on: str
    arithmetic: str
    without_kernel: tuple[str, ...]
    reason: str | None
    time_s: float
    outputs: Mapping[str, Output]

    def to_dict(self) -> dict[str, Any]:
        return {
            "ran_on": self.ran_on,
            "arithmetic": self.arithmetic,
            "without_kernel": list(self.without_kernel),
            "reason": self.reason,
            "time_s": self.time_s,
            "outputs": {name: output.to_dict() for name, output in self.outputs.items()},
        }


def run(file: Path, inputs: Iterable[str], outputs: Iterable[str], *, function: str | None, arithmetic: str) -> Done:
    """Raises ParseError for a damaged file, CompileError for a program that cannot be run, UsageError for inputs and
    outputs that are not the program's."""
    program = _only(load_program(file), function)
    mil.check(program)
    chosen = program.main
    ports = [var for var in chosen.inputs if not isinstance(var.type, StateType)]
    given = {name: _read(path) for name, path in _named("input", inputs, [var.name for var in ports]).items()}
    missing = [f"{var.name} ({var.type})" for var in ports if var.name not in given]
    if missing:
        raise UsageError(f"{chosen.name} needs a value for {', '.join(missing)}: --input NAME=FILE.npy.")
    paths = _named("output", outputs, [var.name for var in chosen.outputs])
    lacking = _without_kernel(chosen)
    start = time.perf_counter()
    results, reason = _results(program, given, arithmetic, lacking)
    time_s = time.perf_counter() - start
    for name, path in paths.items():
        _write(path, name, results[name])
    kept = {name: Output(value, paths.get(name)) for name, value in results.items() if isinstance(value, np.ndarray)}
    ran_on = "twin" if reason is None and arithmetic == "exact" else "numpy"
    return Done(ran_on, arithmetic, lacking, reason, time_s, kept)


def _only(program: Program, name: str | None) -> Program:
    """The program with the one function that is to run."""
    functions = {function.name: function for function in program.functions}
    if name is None and len(functions) > 1 and "main" not in functions:
        raise UsageError(f"Which of its functions? --function with one of {', '.join(functions)}.")
    if name is not None and name not in functions:
        raise UsageError(f"The program has no function {name!r}; it has {', '.join(functions)}.")
    return replace(program, functions=(program.main if name is None else functions[name],))


def _named(what: str, given: Iterable[str], names: list[str]) -> dict[str, str]:
    """Paths by port name; a bare path is that of the only port."""
    found: dict[str, str] = {}
    for item in given:
        name, sign, path = item.partition("=")
        if not sign:
            if len(names) != 1:
                raise UsageError(
                    f"--{what} {item}: which one? The program has {', '.join(names) or 'none'}: NAME={item}."
                )
            name, path = names[0], item
        if name not in names:
            raise UsageError(f"--{what} {item}: there is no {what} {name!r}; there are {', '.join(names) or 'none'}.")
        if name in found:
            raise UsageError(f"--{what} {name} is given twice.")
        found[name] = path
    return found


def _read(path: str) -> np.ndarray:
    """The array of a .npy file, mapped; nothing in it is unpickled."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UsageError(f"{path}: it cannot be read: {error.strerror or error}.") from error
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError) as error:
        raise ParseError(f"{path}: this is no .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in _NUMERIC:
        raise ParseError(f"{path}: this is no .npy file of numbers. Write it with numpy.save.")
    return array


def _write(path: str, name: str, value: Any) -> None:
    if not isinstance(value, np.ndarray):
        raise UsageError(f"the output {name} is a list or text, which no .npy file holds.")
    try:
        with open(path, "wb") as file:  # numpy.save would add .npy to the name
            np.save(file, value, allow_pickle=False)
    except OSError as error:
        raise TorchaneError(f"{path}: it cannot be written: {error.strerror or error}.") from error


def _without_kernel(function: Function) -> tuple[str, ...]:
    """Kinds of ops that the twin has no rule for."""
    return tuple(sorted({op.kind.name for op in walk(function.ops)} - {"const"} - RULES.keys()))


def _results(
    program: Program, given: Mapping[str, np.ndarray], arithmetic: str, lacking: tuple[str, ...]
) -> tuple[dict[str, Any], str | None]:
    """The outputs, and why they are not the twin's, if it was asked."""
    reason = None
    if arithmetic == "exact":
        if lacking:
            reason = f"the twin has no kernel for {', '.join(lacking)}"
        else:
            try:
                return _on_twin(program, given), None
            except DeviceError as error:
                reason = str(error)
        reason = f"Not run on the twin but through the NumPy rules, slowly and to the same bits: {reason}"
    return mil.evaluate(program, given, arithmetic=arithmetic), reason


def _on_twin(program: Program, given: Mapping[str, np.ndarray]) -> dict[str, Any]:
    device = TwinDevice()
    loaded = device.load(*mil.emit(program), name=program.main.name)
    inputs = [device.allocate(type_) for type_ in loaded.inputs]
    outputs = [device.allocate(type_) for type_ in loaded.outputs]
    for var, buffer in zip(program.inputs, inputs, strict=True):
        array = given[var.name]
        if array.shape != buffer.array.shape:
            raise UsageError(f"the input {var.name} is {var.type} and was given the shape {list(array.shape)}.")
        buffer.array[...] = narrowed(array, FP16)
    device.run(loaded, inputs, outputs)
    return {var.name: np.array(buffer.array) for var, buffer in zip(program.outputs, outputs, strict=True)}
