"""How far may a real engine be from `exact` arithmetic?    python scripts/derive_tolerances.py [--write]

For every op that programs are lowered to: random operands of several magnitudes, the op in `exact` and in `engine`
arithmetic by the NumPy rules, and the distance between the two as

    |engine - exact| <= rtol |exact| + atol + atol_per_term K        K: numbers in a sum, for products and sums

rtol is the largest relative distance of results from 2^-4 on, and one step of fp16 at least, atol and atol_per_term what is left below. All are doubled:
samples do not meet the worst case, and another chip rounds otherwise. Results that leave the range count nothing.
--write stores them where a device's verification reads them. Seeded: the same numbers on every machine.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchane.mil import evaluate
from torchane.mil.build import Builder
from torchane.mil.engine import Settings
from torchane.mil.engine.records import record_of
from torchane.mil.ir import Var
from torchane.mil.types import FP16, TensorType

TARGET = Path(__file__).resolve().parents[1] / "src" / "torchane" / "runtime" / "tolerances.json"
#: Ops that hand on one of their operands, so that nothing is rounded.
SELECTS = ("abs", "relu", "maximum", "minimum", "reduce_max")
#: One step of fp16, relative: what a rounding that goes the other way costs.
STEP = 2.0**-10
SEED, MARGIN, LARGE = 0, 2.0, 2.0**-4
SCALES = (2.0**-10, 2.0**-6, 2.0**-3, 1.0, 4.0)


@dataclass(frozen=True)
class Case:
    """Operands by name, the number of terms of a sum (0: there is none), and how the op is written."""

    inputs: dict[str, np.ndarray]
    terms: int
    build: Callable[..., Var]


def cases() -> dict[str, Iterator[Case]]:
    rng = np.random.default_rng(SEED)

    def numbers(scale: float, *shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float16)

    def unary(name: str, change: Callable[[np.ndarray], np.ndarray] = lambda x: x, **args: Any) -> Iterator[Case]:
        for scale in SCALES:
            yield Case({"x": change(numbers(scale, 4096))}, 0, lambda b, x: getattr(b, name)(x=x, **args))

    def binary(name: str, change: Callable[[np.ndarray], np.ndarray] = lambda y: y) -> Iterator[Case]:
        for scale in SCALES:
            for other in SCALES:
                inputs = {"x": numbers(scale, 2048), "y": change(numbers(other, 2048))}
                yield Case(inputs, 0, lambda b, x, y: getattr(b, name)(x=x, y=y))

    def products(name: str) -> Iterator[Case]:
        for k in (32, 128, 512):
            for scale in SCALES:
                for other in (2.0**-7, 2.0**-4, 1.0):
                    x, y = numbers(scale, 24, k), numbers(other, k, 24)
                    if name == "matmul":
                        yield Case({"x": x, "y": y}, k, lambda b, x, y: b.matmul(x=x, y=y))
                    else:
                        weight = x[:, :, None, None]
                        yield Case({"y": y[None, :, None]}, k, lambda b, y, w=weight: b.conv(x=y, weight=w))

    def sums(name: str) -> Iterator[Case]:
        for n in (32, 256, 1024):
            for scale in SCALES:
                yield Case({"x": numbers(scale, 32, n)}, n, lambda b, x: getattr(b, name)(x=x, axes=(-1,), keep_dims=True))

    def softmax() -> Iterator[Case]:
        for n in (32, 64, 256):
            for scale in SCALES:
                yield Case({"x": numbers(scale, 64, n)}, 0, lambda b, x: b.softmax(x=x))

    def away_from_zero(y: np.ndarray) -> np.ndarray:
        return np.where(np.abs(y) < 2.0**-8, np.float16(2.0**-8), y)

    positive = {"change": lambda x: np.abs(x) + np.float16(2.0**-10)}
    return {
        **{name: binary(name) for name in ("add", "sub", "mul", "maximum", "minimum")},
        "real_div": binary("real_div", away_from_zero),
        **{name: unary(name) for name in ("exp", "tanh", "sigmoid", "silu", "abs", "relu")},
        "sqrt": unary("sqrt", **positive),
        "pow": unary("pow", **positive, y=np.float16(-0.5)),
        "matmul": products("matmul"),
        "conv": products("conv"),
        "reduce_sum": sums("reduce_sum"),
        "reduce_max": sums("reduce_max"),
        "softmax": softmax(),
    }


def distances(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """|engine - exact| and |exact|, where both stay in the engine's range."""
    b = Builder()
    result = case.build(b, **{name: b.input(name, TensorType(FP16, x.shape)) for name, x in case.inputs.items()})
    program = b.program(result)
    engine, exact = (
        evaluate(program, case.inputs, arithmetic=name)[result.name].astype(np.float64).ravel() for name in ("engine", "exact")
    )
    kept = np.isfinite(engine) & np.isfinite(exact)
    return np.abs(engine[kept] - exact[kept]), np.abs(exact[kept])


def derive() -> dict[str, dict[str, float]]:
    found = {}
    for name, some in cases().items():
        measured = [(case.terms, *distances(case)) for case in some]
        rtol = max((float((error[size >= LARGE] / size[size >= LARGE]).max(initial=0)) for _, error, size in measured), default=0.0)
        if measured[0][0]:  # a sum: what large results lose by their terms is no share of them
            rtol = STEP
        if name not in SELECTS:
            rtol = max(rtol, STEP)
        else:
            rtol = 0.0
        rest = [(terms, float((error - rtol * size).max(initial=0))) for terms, error, size in measured]
        per_term = max((left / terms for terms, left in rest if terms), default=0.0)
        atol = max((left for terms, left in rest if not terms), default=0.0)
        found[name] = {"rtol": MARGIN * rtol, "atol": MARGIN * atol, "atol_per_term": MARGIN * per_term}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    found = derive()
    print(f"{'op':12} {'rtol':>10} {'atol':>10} {'per term':>10}")
    for name, values in found.items():
        print(f"{name:12} " + " ".join(f"{value:10.2e}" for value in values.values()))
    if args.write:
        about = {
            "what": "evidence: of the engine's rule; where it is assumed, so is the tolerance. |engine - exact| <= rtol |exact| + atol + atol_per_term K, per op",
            "source": "scripts/derive_tolerances.py: the distance of `engine` to `exact` arithmetic on random operands, times 2",
            "settings": repr(Settings()),
        }
        ops = {
            name: {"evidence": record_of(name).evidence.value} | {key: float(f"{value:.3g}") for key, value in values.items()}
            for name, values in found.items()
        }
        TARGET.write_text(json.dumps({**about, "ops": ops}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
