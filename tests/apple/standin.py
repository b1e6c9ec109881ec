"""The other half of the stand-in for Apple's frameworks (standin.m): compiler, daemon and engine, for tests.

    bridge ──► standin.so (Objective-C, C) ──► StandIn.daemon, StandIn.engine ──► mil.evaluate, in NumPy

Programs are run by the NumPy rules of mil/, not by the twin's kernels. What the daemon knows it keeps in a folder, so that
it outlives a process. Faults are those that public reports tell of (ane-faults.md); `fail` and the attributes choose them.
Nothing here says what a Mac does; it behaves as documented, no more.
"""

import ctypes
import hashlib
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from torchane.errors import TorchaneError
from torchane.mil import engine as engine_arithmetic
from torchane.mil.constants import inline_constants, map_literals
from torchane.mil.evaluate import ARITHMETICS, Arithmetic, evaluate
from torchane.mil.ir import Literal, Op, Program, Var
from torchane.mil.save import BLOB_THRESHOLD
from torchane.mil.save import load as load_program
from torchane.mil.types import TensorType

SOURCE = Path(__file__).with_name("standin.m")
INCLUDED = Path(__file__).with_name("standin_espresso.h")
FLAGS = [
    "-std=gnu11", "-fPIC", "-shared", "-O1", "-Wall", "-Werror", "-DGNUSTEP", "-DGNUSTEP_BASE_LIBRARY=1", "-D_NATIVE_OBJC_EXCEPTIONS",
    "-fobjc-exceptions", "-fconstant-string-class=NSConstantString", "-I/usr/include/GNUstep",
]  # fmt: skip
NEEDS = "the stand-in for Apple's framework needs GNUstep: apt-get install gobjc libgnustep-base-dev"

#: Decisions that standin.m understands.
WORKS, EXCEPTION, NIL, NO, HANGS, ERROR, COMPILER, CONNECTION = 0, 1, 2, 3, 4, 1000, 2000, 3000

#: Ops whose results an engine may round otherwise.
_ROUNDED = (
    "matmul", "conv", "add", "sub", "mul", "real_div", "exp", "log", "tanh", "sigmoid", "silu", "gelu", "erf", "pow", "sqrt",
    "reduce_sum", "reduce_mean", "softmax", "square",
)  # fmt: skip


def build(folder: Path) -> Path:
    """The library, compiled into a folder. Raises FileNotFoundError where the compiler or GNUstep is absent."""
    if shutil.which("gcc") is None or not Path("/usr/include/GNUstep/Foundation/Foundation.h").exists():
        raise FileNotFoundError(NEEDS)
    name = hashlib.sha256(SOURCE.read_bytes() + INCLUDED.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    target = folder / f"standin-{name}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as made:
            part = Path(made) / "standin.so"
            done = subprocess.run(
                ["gcc", *FLAGS, str(SOURCE), "-o", str(part), "-lgnustep-base", "-lobjc", "-ldl"], capture_output=True, text=True
            )
            if done.returncode:
                if "cannot execute" in done.stderr or "cc1obj" in done.stderr:
                    raise FileNotFoundError(f"{NEEDS} ({done.stderr.strip()})")
                raise AssertionError(f"the stand-in does not compile:\n{done.stderr}")
            part.rename(target)
    return target


@dataclass
class Fault:
    """From its `after`th time on, `times` times, every `every`th, an event comes to `what`: a decision, or the name of a damage
    to results."""

    event: str
    what: int | str
    after: int
    times: int
    every: int = 1
    seen: int = 0

    def strikes(self) -> bool:
        self.seen += 1
        return self.after < self.seen <= self.after + self.times and (self.seen - self.after - 1) % self.every == 0


@dataclass
class Compiled:
    """A program as the daemon has it: ports in the order of their symbols, outputs under `name@output`."""

    program: Program
    inputs: list[Var] = field(default_factory=list)
    outputs: list[Var] = field(default_factory=list)
    first_inputs: list[np.ndarray] | None = None

    def __post_init__(self) -> None:
        self.inputs = sorted(self.program.inputs, key=lambda var: var.name.encode())
        self.outputs = sorted(self.program.outputs, key=lambda var: f"{var.name}@output".encode())


_DAEMON = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_char))
_ENGINE = ctypes.CFUNCTYPE(
    ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int64),
    ctypes.c_int64, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int64),
)  # fmt: skip


#: The library keeps pointers to these, and objects that outlive a test call them while they die.
_CALLBACKS: list[Any] = []
_PROGRAMS = itertools.count(1)


class StandIn:
    """One machine with an engine. store: the folder of the daemon's compiled programs.

    arithmetic: "exact", "engine", or what `noisy` gives. Attributes are limits and habits of the machine.
    """

    def __init__(self, library: Path, store: Path, arithmetic: str | Arithmetic = "exact"):
        self.path = library
        self.store = store
        self.arithmetic = arithmetic
        self.faults: list[Fault] = []
        self.events: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self.most_loaded, self.most_compiles, self.most_weight_files = 127, 1 << 30, 16
        self.wants_equal_surfaces = False
        self.least_surface_bytes = 49152
        self.ignores_runtime_conv_weights = self.ignores_attention_masks = self.tile_poisons = False
        self.dispatch_s = 0.0  # that the engine takes besides, while the processor is free
        self.wrong_op = ""  # every result of this op is half of what it should be
        self.reads_first_block_only = False  # of a weight file that holds several
        self.answers_symbols = True
        self.build = "25A000"
        self.has_engine, self.is_virtual = True, False
        self._loaded: dict[int, tuple[str, Compiled]] = {}
        self._poisoned = False
        self.library = ctypes.CDLL(str(library))
        self.library.standin_live.restype = ctypes.c_int64
        callbacks = _DAEMON(self._guarded_daemon), _ENGINE(self._guarded_engine)
        _CALLBACKS.append(callbacks)
        self.library.standin_register(*callbacks)
        self.hide("")
        self.skip_evaluation(False)
        self.library.standin_encoding(b"", b"")

    # What a test chooses

    def fail(self, event: str, what: int | str, after: int = 0, times: int = 1, every: int = 1) -> Fault:
        """event: surface, descriptor, model, client, request, compile, load, evaluate, unload. what, for evaluate, also:
        restart (of the daemon), swapped, stale, partial, zeros, half, nan, one (a single number changed by a step of its magnitude),
        infinite (a single number)."""
        self.faults.append(Fault(event, what, after, times, every))
        return self.faults[-1]

    def hide(self, name: str) -> None:
        """A class or selector that this system lacks."""
        self.library.standin_missing(name.encode())

    def change_encoding(self, name: str, encoding: str) -> None:
        self.library.standin_encoding(name.encode(), encoding.encode())

    def restart_daemon(self) -> None:
        """All loaded programs are gone; what was compiled stays."""
        self._loaded.clear()

    def forget_compiled(self) -> None:
        """As a daemon does when it starts under another build of the system."""
        shutil.rmtree(self.store, ignore_errors=True)

    def live(self) -> dict[str, int]:
        return {name: self.library.standin_live(i) for i, name in enumerate(("surfaces", "models", "requests", "locks"))}

    @property
    def loaded(self) -> int:
        return len(self._loaded)

    def skip_evaluation(self, skips: bool = True, output_bytes: int = 1 << 40) -> None:
        """Dispatches write zeros, so many into each output: what is left is the cost of bridge and device."""
        self.library.standin_skip(ctypes.c_int64(output_bytes if skips else 0))

    def release_hangs(self) -> None:
        self.library.standin_release_hangs()

    # The daemon

    def _guarded_daemon(self, event: bytes, identifier: bytes, directory: bytes, program: int, reply: Any) -> int:
        try:
            decided, said = self._daemon(event.decode(), identifier.decode(), directory.decode(), program)
            text = said.encode()[:4000] + b"\0"
            ctypes.memmove(reply, text, len(text))
            return decided
        except BaseException as error:  # ctypes would print it and go on
            self.errors.append(error)
            return ERROR + 25

    def _struck(self, event: str) -> int | str | None:
        self.events[event] += 1
        struck = [fault.what for fault in self.faults if fault.event == event and fault.strikes()]
        return struck[0] if struck else None

    def _daemon(self, event: str, identifier: str, directory: str, program: int) -> tuple[int, str]:
        if event == "unload" and program not in self._loaded:
            return ERROR + 23, ""  # also of an earlier machine
        struck = self._struck(event)
        if isinstance(struck, int):
            return struck, event
        match event:
            case "compile":
                return self._compile(identifier, Path(directory))
            case "load":
                return self._load(identifier)
            case "unload":
                del self._loaded[program]
            case "exists":
                return int(self._kept(identifier).is_dir()), ""
            case "purge":
                shutil.rmtree(self._kept(identifier), ignore_errors=True)
            case "symbols" if self.answers_symbols and program in self._loaded:
                compiled = self._loaded[program][1]
                names = "\n".join(var.name for var in compiled.inputs)
                return WORKS, names + "\n\n" + "\n".join(f"{var.name}@output" for var in compiled.outputs)
            case "input port" | "output port":
                compiled = self._loaded[program][1]
                ports = [var.name for var in (compiled.inputs if event == "input port" else compiled.outputs)]
                return (ports.index(identifier) if identifier in ports else -1), ""
            case "has engine":
                return (WORKS if self.has_engine else NO), ""
            case "is virtual":
                return int(self.is_virtual), ""
            case "build":
                return WORKS, self.build
        return WORKS, ""

    def _kept(self, identifier: str) -> Path:
        return self.store / hashlib.sha256(identifier.encode()).hexdigest()[:32]

    def _compile(self, identifier: str, directory: Path) -> tuple[int, str]:
        if self.is_virtual or not self.has_engine:
            return ERROR + 22, ""
        if self.events["compile"] > self.most_compiles:
            return COMPILER, ""
        if not (directory / "model.mil").is_file():
            return COMPILER, "InvalidMILProgram"
        files = [file for file in directory.rglob("*") if file.is_file() and file.suffix == ".bin"]
        if len(files) > self.most_weight_files:
            return COMPILER, "InvalidMILProgram"
        try:
            load_program(directory)
        except TorchaneError:
            return COMPILER, "InvalidMILProgram"
        kept = self._kept(identifier)
        if not kept.exists():  # the same identifier is the same program, whatever the files say
            part = kept.with_suffix(f".{os.getpid()}")  # a real daemon is one process; this one is in each that uses it
            shutil.copytree(directory, part)
            with suppress(OSError):  # another was faster
                part.rename(kept)
            shutil.rmtree(part, ignore_errors=True)
        return WORKS, ""

    def _load(self, identifier: str) -> tuple[int, str]:
        kept = self._kept(identifier)
        if not kept.is_dir():
            return ERROR + 16, ""
        if len(self._loaded) >= self.most_loaded:
            return ERROR + 6, ""
        program = next(_PROGRAMS)
        read = inline_constants(load_program(kept))
        is_packed = len([file for file in kept.rglob("*.bin") if file.is_file()]) == 1
        self._loaded[program] = identifier, Compiled(_with_first_block(read) if is_packed and self.reads_first_block_only else read)
        return WORKS, str(program)

    # The engine

    def _guarded_engine(self, program: int, inputs: int, in_: Any, in_sizes: Any, outputs: int, out: Any, out_sizes: Any) -> int:
        try:
            return self._engine(program, list(in_[:inputs]), in_sizes[:inputs], list(out[:outputs]), out_sizes[:outputs])
        except BaseException as error:
            self.errors.append(error)
            return ERROR + 25

    def _engine(self, program: int, in_: list[int], in_sizes: list[int], out: list[int], out_sizes: list[int]) -> int:
        struck = self._struck("evaluate")
        if isinstance(struck, int):
            return struck
        if struck == "restart":
            self.restart_daemon()
        if program not in self._loaded:
            return ERROR + 23
        compiled = self._loaded[program][1]
        if self._poisoned or not self._sizes_fit(compiled, in_sizes, out_sizes):
            return ERROR + 8
        given = [_array(at, var.type) for at, var in zip(in_, compiled.inputs, strict=True)]
        results = [_array(at, var.type) for at, var in zip(out, compiled.outputs, strict=True)]
        self._poisoned |= self.tile_poisons and any(op.kind.name == "tile" for op in compiled.program.ops)
        if compiled.first_inputs is None:
            compiled.first_inputs = [array.copy() for array in given]
        if struck == "stale":
            given = compiled.first_inputs
        made = self._results(compiled, given)
        time.sleep(self.dispatch_s)
        _write(results, made, struck if isinstance(struck, str) else "")
        return WORKS

    def _sizes_fit(self, compiled: Compiled, in_sizes: list[int], out_sizes: list[int]) -> bool:
        if len(in_sizes) != len(compiled.inputs) or len(out_sizes) != len(compiled.outputs):
            return False
        if self.wants_equal_surfaces and (len(set(in_sizes)) > 1 or len(set(out_sizes)) > 1):
            return False
        ports = zip([*in_sizes, *out_sizes], [*compiled.inputs, *compiled.outputs])
        return all(size >= max(var.type.size_bytes, self.least_surface_bytes) for size, var in ports)

    def _results(self, compiled: Compiled, given: list[np.ndarray]) -> list[np.ndarray]:
        found = evaluate(
            compiled.program, {var.name: array for var, array in zip(compiled.inputs, given)}, arithmetic=self._chosen()
        )
        return [found[var.name] for var in compiled.outputs]

    def _chosen(self) -> Arithmetic:
        arithmetic = ARITHMETICS[self.arithmetic] if isinstance(self.arithmetic, str) else self.arithmetic
        if self.ignores_runtime_conv_weights:
            arithmetic = _with_rule(arithmetic, "conv", _without_runtime_weights)
        if self.ignores_attention_masks:
            arithmetic = _with_rule(arithmetic, "scaled_dot_product_attention", _without_mask)
        if self.wrong_op:
            plain = _plain(arithmetic, self.wrong_op)
            halved = {self.wrong_op: lambda op, args: tuple(value / 2 for value in plain(op, args))}
            arithmetic = replace(arithmetic, rules={**arithmetic.rules, **halved})
        return arithmetic


def _with_first_block(program: Program) -> Program:
    """Every weight of a shape is the first of that shape."""
    first: dict[Any, Literal] = {}

    def read(literal: Literal) -> Literal:
        is_weight = isinstance(literal.value, np.ndarray) and literal.value.nbytes > BLOB_THRESHOLD
        return first.setdefault(literal.type, literal) if is_weight else literal

    return map_literals(program, read)


def _array(address: int, type_: Any) -> np.ndarray:
    assert isinstance(type_, TensorType)
    memory = (ctypes.c_uint8 * type_.size_bytes).from_address(address)
    return np.frombuffer(memory, np.float16).reshape(type_.shape)  # type: ignore[arg-type]


def _write(results: list[np.ndarray], made: list[np.ndarray], damage: str) -> None:
    if damage == "swapped":
        shapes = [array.shape for array in made]
        pairs = [(i, j) for i in range(len(made)) for j in range(i) if shapes[i] == shapes[j]]
        for i, j in pairs[:1]:
            made[i], made[j] = made[j], made[i]
    for target, array in zip(results, made):
        if damage == "partial":
            half = target.size // 2
            target.reshape(-1)[:half] = array.reshape(-1)[:half]
            continue
        target[...] = array * 0 if damage == "zeros" else array / 2 if damage == "half" else array * np.float16("nan") if damage == "nan" else array
        if damage == "one":
            flat = target.reshape(-1)
            flat[flat.size // 3] = flat[flat.size // 3] + np.abs(flat).max()
        if damage == "infinite":
            target.reshape(-1)[target.size // 3] = np.inf


def _plain(arithmetic: Arithmetic, name: str) -> Callable[[Op, Mapping[str, Any]], tuple[Any, ...]]:
    return arithmetic.rules.get(name) or (lambda op, args: op.kind.evaluate(args))


def _with_rule(arithmetic: Arithmetic, name: str, change: Callable[[Op, Mapping[str, Any]], Mapping[str, Any]]) -> Arithmetic:
    plain = _plain(arithmetic, name)
    return replace(arithmetic, rules={**arithmetic.rules, name: lambda op, args: plain(op, change(op, args))})


def _without_runtime_weights(op: Op, args: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**args, "weight": np.zeros_like(args["weight"])} if isinstance(op.args["weight"], Var) else args


def _without_mask(op: Op, args: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**args, "attn_mask": None}


def noisy(ulps: float, seed: int = 0, base: Arithmetic | None = None) -> Arithmetic:
    """The engine's arithmetic with results up to `ulps` steps of fp16 off, and products added in the opposite order."""
    base = base or engine_arithmetic.ENGINE
    rng = np.random.default_rng(seed)

    def rule(name: str) -> Callable[[Op, Mapping[str, Any]], tuple[Any, ...]]:
        plain = _plain(base, name)

        def run(op: Op, args: Mapping[str, Any]) -> tuple[Any, ...]:
            if name == "matmul":
                args = {**args, **_reversed(args)}
            return tuple(
                value * (1 + rng.uniform(-ulps, ulps, value.shape) * 2.0**-10) for value in map(np.asarray, plain(op, args))
            )

        return run

    return replace(base, rules={**base.rules, **{name: rule(name) for name in _ROUNDED}})


def _reversed(args: Mapping[str, Any]) -> dict[str, Any]:
    x, y = args["x"], args["y"]
    x = x[..., ::-1, :] if args.get("transpose_x") else x[..., ::-1]
    y = y[..., ::-1] if args.get("transpose_y") else y[..., ::-1, :]
    return {"x": x, "y": y}
