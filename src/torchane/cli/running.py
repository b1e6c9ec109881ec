"""What `torchane run` does: values in from .npy files, a program on the twin and where it must in NumPy, values out."""

import io
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from torchane import mil
from torchane.errors import ParseError, RunFolderError, TorchaneError, UsageError
from torchane.inspect.recognize import load_program
from torchane.mil.files import LONGEST_STAND_IN, require_fetched
from torchane.mil.ir import Program
from torchane.mil.types import StateType
from torchane.models.files import require_regular, write_atomically
from torchane.runtime.mixed import Elsewhere, run_mixed
from torchane.runtime.twin import ARITHMETICS as KERNELS

#: Element types that a .npy may hold: booleans, integers, floats.
_NUMERIC = "biuf"

#: How many ops of one kind a notice names.
_NAMES = 3


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
    """One run: what the twin executed, in how many programs, and which ops went through their NumPy rules."""

    arithmetic: str
    native_ops: int
    dispatches: int
    elsewhere: tuple[Elsewhere, ...]
    time_s: float
    outputs: Mapping[str, Output]

    @property
    def ran_on(self) -> str:
        if not self.elsewhere:
            return "twin"
        return "twin and numpy" if self.native_ops else "numpy"

    def notice(self) -> str | None:
        """Which ops were not the twin's and why, for a person; None if all were, or if none was asked to be."""
        if not self.elsewhere or self.arithmetic not in KERNELS:
            return None
        total = self.native_ops + len(self.elsewhere)
        lines = [f"{len(self.elsewhere):,} of {total:,} ops went through the NumPy rules, which are slow:"]
        grouped: dict[tuple[str, str], list[str]] = {}
        for op in self.elsewhere:
            grouped.setdefault((op.kind, op.cause), []).append(op.name)
        reasons = {(op.kind, op.cause): op.reason for op in reversed(self.elsewhere)}
        for (kind, cause), names in grouped.items():
            more = f" and {len(names) - _NAMES:,} more" if len(names) > _NAMES else ""
            lines.append(f"  {kind} {', '.join(names[:_NAMES])}{more}: {reasons[kind, cause]}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {
            "ran_on": self.ran_on,
            "arithmetic": self.arithmetic,
            "native_ops": self.native_ops,
            "dispatches": self.dispatches,
            "numpy_ops": [{"name": op.name, "op": op.kind, "reason": op.reason} for op in self.elsewhere],
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
    start = time.perf_counter()
    ran = run_mixed(program, given, arithmetic=arithmetic)
    time_s = time.perf_counter() - start
    for name, path in paths.items():
        _write(path, name, ran.outputs[name])
    kept = {
        name: Output(value, paths.get(name)) for name, value in ran.outputs.items() if isinstance(value, np.ndarray)
    }
    return Done(arithmetic, ran.native_ops, ran.dispatches, ran.elsewhere, time_s, kept)


def _only(program: Program, name: str | None) -> Program:
    """The program with the one function that is to run."""
    functions = {function.name: function for function in program.functions}
    if name is None and len(functions) > 1 and (program.default_function or "main") not in functions:
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
        if what == "output" and (other := {os.path.realpath(taken): port for port, taken in found.items()}.get(os.path.realpath(path))):
            raise UsageError(f"--output {name} and --output {other} are the same file, {path}. Give each a file of its own.")
        found[name] = path
    return found


def _read(path: str) -> np.ndarray:
    """The array of a .npy file, mapped; nothing in it is unpickled."""
    try:
        require_regular(os.stat(path), sys.maxsize)  # a pipe would be waited for
    except ValueError as error:
        raise UsageError(f"{path}: {error}. Give a .npy file.") from error
    except OSError as error:
        raise UsageError(f"{path}: it cannot be read: {error.strerror or error}.") from error
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UsageError(f"{path}: it cannot be read: {error.strerror or error}.") from error
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError) as error:
        with open(path, "rb") as file:
            require_fetched(path, file.read(LONGEST_STAND_IN))
        # NumPy takes whatever is no .npy for a pickle, and says how to load one; nobody should.
        reason = "" if "pickle" in str(error) else f" ({error})"
        raise ParseError(f"{path}: this is no .npy file of numbers{reason}. Write it with numpy.save.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in _NUMERIC:
        raise ParseError(f"{path}: this is no .npy file of numbers. Write it with numpy.save.")
    return array


def _write(path: str, name: str, value: Any) -> None:
    """A file is written whole or not at all: it may be that of an input, which is mapped while the program runs."""
    if not isinstance(value, np.ndarray):
        raise UsageError(f"the output {name} is a list or text, which no .npy file holds.")
    held = io.BytesIO()
    np.save(held, value, allow_pickle=False)
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():  # /dev/null, a pipe: nothing that could be replaced
            target.write_bytes(held.getbuffer())
        else:
            write_atomically(target, lambda writer: writer(held.getbuffer()))
    except (OSError, RunFolderError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        raise TorchaneError(f"{path}: it cannot be written: {getattr(reason, 'strerror', None) or reason}.") from error
