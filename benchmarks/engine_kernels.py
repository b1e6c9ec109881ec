"""How fast does the twin compute in the engine's own arithmetic?    python benchmarks/engine_kernels.py

Fixed: normal fp16 numbers, seed 0, the fastest instruction set; per case 3 warm-up runs, then runs for about a second:
median and 10th-90th percentile, by the clock with two threads, and by the processor's time with one, which a busy
machine does not distort. Beside it the same program in `exact` arithmetic by the processor's time. One product may
overflow in every tile (each product is added in 64 bits then). The last line is JSON.
"""

import json
import platform
import time
from collections.abc import Callable

import numpy as np

from torchane import native
from torchane.mil.build import Builder
from torchane.mil.types import FP16, TensorType
from torchane.runtime.twin import load_program
from torchane.runtime.twin.engine import prepare

WARM_UP, SECONDS = 3, 1.0


def matmul(m: int, k: int, n: int, scale: float = 0.05):
    x = np.random.default_rng(0).standard_normal((m, k)).astype(np.float16)
    y = (np.random.default_rng(1).standard_normal((k, n)) * scale).astype(np.float16)
    return lambda b, x, y: b.matmul(x=x, y=y), {"x": x, "y": y}, m * k * n, "mac"


def on_rows(name: str, rows: int, length: int):
    x = np.random.default_rng(0).standard_normal((rows, length)).astype(np.float16)
    args = {"axes": (-1,), "keep_dims": True} if name.startswith("reduce") else {}
    return lambda b, x: getattr(b, name)(x=x, **args), {"x": x}, rows * length, "number"


def attention(heads: int, length: int, size: int):
    x, y = (np.random.default_rng(s).standard_normal((heads, length, size)).astype(np.float16) for s in (0, 1))
    return lambda b, x, y: b.matmul(x=x, y=y, transpose_y=True), {"x": x, "y": y}, heads * length * length * size, "mac"


CASES = {
    "matmul 256 x 768 x 768": matmul(256, 768, 768),
    "matmul 512 x 2048 x 512": matmul(512, 2048, 512),
    "matmul 256 x 288 x 4096 (a vocabulary)": matmul(256, 288, 4096),
    "scores of 12 heads, 256 x 256 x 64": attention(12, 256, 64),
    "matmul 256 x 768 x 768, may overflow": matmul(256, 768, 768, scale=60.0),
    "softmax 3072 x 256": on_rows("softmax", 3072, 256),
    "sigmoid 1024 x 1024": on_rows("sigmoid", 1024, 1024),
    "mul 1024 x 1024": (lambda b, x: b.mul(x=x, y=x), on_rows("abs", 1024, 1024)[1], 1024 * 1024, "number"),
    "reduce_sum 1024 x 1024": on_rows("reduce_sum", 1024, 1024),
}


def rates(build, inputs, work: float, arithmetic: str, threads: int, clock: Callable[[], float]) -> list[float]:
    """Work per second of that clock at the 10th, 50th and 90th percentile, in units of 1e9."""
    native.set_threads(threads)
    b = Builder()
    result = build(b, **{name: b.input(name, TensorType(FP16, x.shape)) for name, x in inputs.items()})
    loaded, executor = load_program(b.program(result), "case", arithmetic), native.Executor()
    out, arrays = np.zeros(result.shape, np.float16), list(inputs.values())
    for _ in range(WARM_UP):
        executor.run(loaded.tape, arrays, [out])
    times = []
    while sum(times) < SECONDS:
        start = clock()
        executor.run(loaded.tape, arrays, [out])
        times.append(clock() - start)
    return [work / 1e9 / float(np.percentile(times, 100 - p)) for p in (10, 50, 90)]


def main() -> None:
    prepare()
    found = {}
    print(f"{'case':40} {'engine, 2 threads, clock':>28} {'1 thread, processor':>22} {'exact':>8}   1e9 per second")
    for name, (build, inputs, work, unit) in CASES.items():
        wall = rates(build, inputs, work, "engine", 2, time.perf_counter)
        core = rates(build, inputs, work, "engine", 1, time.process_time)
        exact = rates(build, inputs, work, "exact", 1, time.process_time)
        found[name] = {"engine_2_threads": wall, "engine_per_core": core, "exact_per_core": exact, "unit": f"1e9 {unit} per second"}
        print(f"{name:40} {wall[1]:12.2f} ({wall[0]:5.2f}-{wall[2]:5.2f}) {core[1]:22.2f} {exact[1]:8.2f}   {unit}")
    print(json.dumps({"machine": platform.processor() or platform.machine(), "isa": native.get_isa(), "rates": found}))


if __name__ == "__main__":
    main()
