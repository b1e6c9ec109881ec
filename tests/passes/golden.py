"""How the tests of passes read, write and run programs: the statements of main, without the `name` attributes."""

import re

import numpy as np

from torchane.mil.check import check
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Program
from torchane.mil.text import parse, to_text


def main(text: str) -> Program:
    """`(params) { statements } -> (outputs)` as a program."""
    return parse(f"program(1.3)\n{{\nfunc main<ios18>{text};\n}}\n")


def text_of(program: Program) -> str:
    """Parameters, statements and outputs of main, a line each."""
    text = re.sub(r'\[name = string\("[^"]*"\)(, )?', "[", to_text(program))
    text = re.sub(r', name = string\("[^"]*"\)\]', "]", text).replace("[];", ";")
    lines = [line.strip() for line in text.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("func main"))
    return "\n".join(line.removeprefix("func main<ios18>") for line in lines[start:-1])


def same_text(program: Program, golden: str) -> bool:
    """The checked program against expected text, which is parsed and printed, so that spacing does not count."""
    check(program)
    expected = text_of(main(golden.strip().removesuffix(";")))
    assert text_of(program) == expected
    return True


def inputs_of(program: Program, seed: int = 0, low: float = -2.0, high: float = 2.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {var.name: rng.uniform(low, high, var.shape) for var in program.inputs}


def moves(before: Program, after: Program, *, low: float = -2.0, high: float = 2.0, seed: int = 0) -> float:
    """How far any output moved, relative to the larger of it and 1, in exact numbers."""
    check(after)
    given = inputs_of(before, seed, low, high)
    old = evaluate(before, given, arithmetic="ideal")
    new = evaluate(after, given, arithmetic="ideal")
    assert list(old) == list(new)
    return max(float(np.max(np.abs(old[name] - new[name]) / np.maximum(np.abs(old[name]), 1), initial=0)) for name in old)


def same_bits(before: Program, after: Program, seed: int = 0) -> bool:
    """Both give the same fp16 numbers under the evaluator's rounding."""
    check(after)
    given = {name: array.astype(np.float16) for name, array in inputs_of(before, seed).items()}
    old, new = evaluate(before, given), evaluate(after, given)
    return all(old[name].tobytes() == new[name].tobytes() for name in old)
