"""How long does MIL text take to read, to print, to check, and a model with its weights to open?

    python benchmarks/mil_text.py [MODEL.mil] [--rounds 15]

Without a file: a program of 3,000 statements in Apple's form, about 600 KB. Fixed: one thread, warm file cache;
2 rounds not counted, then the median and the 10th to 90th percentile. The last line of output is JSON.
"""

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from torchane import mil
from torchane.mil.build import Builder
from torchane.mil.ir import Function, Literal, Op, Program, Var
from torchane.mil.kinds import kind_of
from torchane.mil.text import APPLE
from torchane.mil.types import FP16, TensorType


def made(layers: int = 500) -> str:
    """A text of six statements a layer, the constants of Apple's own among them."""
    b = Builder()
    x = b.input("x", (1, 64, 1, 256))
    for layer in range(layers):
        y = b.mul(x=x, y=0.5, name=f"layer_{layer}_scaled_cast_fp16")
        y = b.transpose(x=y, perm=(0, 3, 2, 1), name=f"layer_{layer}_transposed_cast_fp16")
        y = b.reduce_sum(x=y, axes=(3,), keep_dims=True, name=f"layer_{layer}_summed_cast_fp16")
        y = b.reshape(x=y, shape=(1, 1, 1, 256), name=f"layer_{layer}_reshaped_cast_fp16")
        y = b.sigmoid(x=y, name=f"layer_{layer}_gate_cast_fp16")
        x = b.add(x=x, y=y, name=f"layer_{layer}_out_cast_fp16")
    return mil.to_text(Program(b.program(x).functions, version="1.0"), APPLE)


def timed(work: Callable[[], object], rounds: int) -> dict[str, float]:
    """Median and spread in milliseconds."""
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    times = sorted(times[2:])
    low, high = np.percentile(times, [10, 90])
    return {"median_ms": statistics.median(times), "p10_ms": float(low), "p90_ms": float(high)}


def opened(rounds: int, size_mib: int = 64) -> dict[str, float]:
    """`mil.load` of a program with one large constant, whose bytes need not be read."""
    weights = np.zeros(size_mib * 2**19, np.float16)
    type_ = TensorType(FP16, weights.shape)
    const = Op(kind_of("const"), {}, (Var("w", type_),), {"val": Literal(type_, weights)})
    with tempfile.TemporaryDirectory() as folder:
        path = mil.save(Program((Function("main", (), (const,), const.outputs),)), folder)
        return timed(lambda: mil.load(path), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    text = options.model.read_text() if options.model else made()
    program = mil.parse(text)
    result = {
        "benchmark": "mil_text",
        "model": options.model.name if options.model else "made",
        "size_bytes": len(text.encode()),
        "ops": sum(len(function.ops) for function in program.functions),
        "parse": timed(lambda: mil.parse(text), options.rounds),
        "print": timed(lambda: mil.to_text(program, APPLE), options.rounds),
        "check": timed(lambda: mil.check(program), options.rounds),
        "open_64_mib": opened(options.rounds),
        "machine": platform.processor() or platform.machine(),
        "os": platform.platform(),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }  # fmt: skip
    for what in ("parse", "print", "check", "open_64_mib"):
        numbers = result[what]
        print(f"{what:12} {numbers['median_ms']:8.2f} ms   ({numbers['p10_ms']:.2f} to {numbers['p90_ms']:.2f})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
