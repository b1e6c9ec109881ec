"""Programs of one op, spoiled: what reads and checks runs in every arithmetic, in NumPy and cut between the twin and
NumPy, to results of the declared types, or ends in our error.

python tests/runtime/fuzz_programs.py [COUNT] [SEED]
"""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mil"))

import numpy as np
from fuzz_mutations import mutations

from torchane.errors import TorchaneError
from torchane.mil import check, evaluate, parse
from torchane.mil.evaluate import ARITHMETICS
from torchane.mil.ir import Program, Var
from torchane.mil.types import BOOL, STRING, StateType, TensorType
from torchane.runtime.mixed import run_mixed

LIMIT_S = 20.0

#: Inputs of more numbers are not made: only time would be found.
MOST = 1_000_000

_GOLDEN = Path(__file__).resolve().parents[1] / "mil" / "golden" / "every_op.mil"
SEEDS = tuple("func" + function for function in _GOLDEN.read_text().rstrip().rstrip("}").split("    func")[1:])
TOKENS = (
    "0", "1", "-1", "2", "3", "5", "7", "100", "2147483647", "-2147483648", "true", "false", "fp16", "fp32", "int32", "bool",
    "[", "]", "[0]", "[1, 1]", "[2]", "[4, 4]", "?", "0.0", "1e30", "inf", "nan", "-0.5", ", 1", ", 0", "1, ", '"constant"',
    '"reflect"', '"same"', '"valid"', "int8", "uint8", "string", "x", "y",
)  # fmt: skip


def fuzz(count: int, seed: int = 0) -> Counter:
    """Runs `count` inputs and counts how they ended; raises AssertionError, with the input, for a forbidden end."""
    ends: Counter = Counter()
    rng = np.random.default_rng(seed)
    for text in mutations(SEEDS, TOKENS, count, seed):
        start = time.perf_counter()
        try:
            ends.update(_one(text, rng))
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\nfor the input {text!r}") from error
        assert time.perf_counter() - start < LIMIT_S, f"{time.perf_counter() - start:.1f} s for the input {text!r}"
    return ends


def _one(text: str, rng: np.random.Generator) -> list[str]:
    try:
        program = parse(text)
        check(program)
    except TorchaneError:
        return ["refused"]
    inputs = {}
    for var in program.inputs:
        shape = _shape(var, rng)
        if shape is None:
            return ["too large"]
        if not isinstance(var.type, StateType):
            inputs[var.name] = _value(var, shape, rng)
    return [_end(how, program, inputs, arithmetic) for arithmetic in ARITHMETICS for how in (_evaluated, _mixed)]


def _evaluated(program: Program, inputs: dict[str, Any], arithmetic: str) -> Any:
    return evaluate(program, inputs, arithmetic=arithmetic)


def _mixed(program: Program, inputs: dict[str, Any], arithmetic: str) -> Any:
    return run_mixed(program, inputs, arithmetic=arithmetic).outputs


def _end(how: Any, program: Program, inputs: dict[str, Any], arithmetic: str) -> str:
    try:
        outputs = how(program, inputs, arithmetic)
    except TorchaneError:
        return "not run"
    for var in program.outputs:
        found, type_ = outputs[var.name], var.type
        if isinstance(type_, TensorType) and type_.dtype is not STRING:
            assert found.ndim == type_.rank, (var, found.shape)
            assert all(want in (None, have) for want, have in zip(type_.shape, found.shape)), (var, found.shape)
            assert arithmetic == "ideal" or found.dtype == type_.dtype.numpy, (var, found.dtype)
    return "ran"


def _shape(var: Var, rng: np.random.Generator) -> tuple[int, ...] | None:
    type_ = var.type.tensor if isinstance(var.type, StateType) else var.type
    if not isinstance(type_, TensorType):
        return ()
    shape = tuple(int(rng.integers(0, 4)) if size is None else size for size in type_.shape)
    return shape if np.prod([float(size) for size in shape]) <= MOST else None


def _value(var: Var, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    if not isinstance(var.type, TensorType):
        return 0
    dtype = var.type.dtype
    if dtype is BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_integer:
        return rng.integers(-2, 6, shape)
    return np.full(shape, "a", object) if dtype is STRING else rng.standard_normal(shape) * rng.choice([1, 100])


if __name__ == "__main__":
    how_many, first = (int(arg) for arg in (*sys.argv[1:], 10_000, 0)[:2])
    begin = time.perf_counter()
    print(dict(fuzz(how_many, first)), f"{time.perf_counter() - begin:.1f} s")
