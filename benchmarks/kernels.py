"""How fast are the twin's kernels, and how far from PyTorch's in fp32?    python benchmarks/kernels.py [--isa NAME]

Fixed: the shapes of a training step of stories110m (batch 4, sequence 256, so 1024 places) and of tiny,
normal numbers, seed 0; each case in a program of its own, 3 runs to warm up, then runs for at least 0.3 s;
median and 10th-90th percentile of a run, the two sides one after the other. PyTorch computes the same product in
fp32 into an array that exists. The last line of output is JSON.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from torchane import native
from torchane.mil.build import Builder
from torchane.mil.ir import Program
from torchane.runtime.twin import TwinDevice, load_program

#: (what, x, y, transpose_x, transpose_y)
PRODUCTS = [
    ("linear 768x768, 1024 places", (768, 768), (768, 1024), False, False),
    ("linear 2048x768", (2048, 768), (768, 1024), False, False),
    ("linear 768x2048", (768, 2048), (2048, 1024), False, False),
    ("its dx", (2048, 768), (2048, 1024), True, False),
    ("its dW", (2048, 1024), (768, 1024), False, True),
    ("vocabulary 32000x768, 256 places", (32000, 768), (768, 256), False, False),
    ("attention scores, 48 heads", (48, 256, 64), (48, 64, 256), False, False),
    ("attention values, 48 heads", (48, 256, 256), (48, 256, 64), False, False),
    ("tiny 128x128", (128, 128), (128, 1024), False, False),
    ("tiny 352x128", (352, 128), (128, 1024), False, False),
]


def others() -> Iterator[tuple[str, Program]]:
    """What is no product: memory-bound, mostly."""
    b = Builder()
    x, y = b.input("x", (1, 2048, 1, 1024)), b.input("y", (1, 2048, 1, 1024))
    yield "x * sigmoid(x) * y, 2048x1024", b.program(b.mul(x=b.mul(x=x, y=b.sigmoid(x=x)), y=y))
    b = Builder()
    x = b.input("x", (1, 768, 1, 1024))
    yield "reduce_sum(x * x) over 768 channels", b.program(b.reduce_sum(x=b.mul(x=x, y=x), axes=(1,), keep_dims=True))
    b = Builder()
    x, mask = b.input("x", (4, 12, 256, 256)), b.input("m", (1, 1, 256, 256))
    yield "softmax(x / 8 + mask), 48 heads of 256x256", b.program(b.softmax(x=b.add(x=b.mul(x=x, y=0.125), y=mask)))
    b = Builder()
    x = b.input("x", (4, 12, 64, 256))
    yield "transpose of the last axes, 48 x 64x256", b.program(b.transpose(x=x, perm=(0, 1, 3, 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", choices=native.isas(), default=native.get_isa())
    parser.add_argument("--threads", type=int, default=native.get_threads())
    parser.add_argument("--seconds", type=float, default=0.3, help="per case and side")
    args = parser.parse_args()
    native.set_isa(args.isa)
    native.set_threads(args.threads)
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    results = []
    for what, x, y, transpose_x, transpose_y in PRODUCTS:
        b = Builder()
        product = b.matmul(x=b.input("x", x), y=b.input("y", y), transpose_x=transpose_x, transpose_y=transpose_y)
        run, flop = prepared(b.program(product), rng)
        left, right = (torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for shape in (x, y))
        left, right = (left.mT if transpose_x else left), (right.mT if transpose_y else right)
        out = torch.empty(product.shape)
        ours, theirs = timed(run, args.seconds), timed(partial(torch.matmul, left, right, out=out), args.seconds)
        results.append({"what": what, "twin_s": ours, "torch_fp32_s": theirs, "flop": flop})
        print(f"{what:44} {flop / ours[0] / 1e9:7.0f} GFLOP/s {spread(ours)}   PyTorch fp32 {flop / theirs[0] / 1e9:6.0f} {spread(theirs)}")
    for what, program in others():
        ours = timed(prepared(program, rng)[0], args.seconds)
        results.append({"what": what, "twin_s": ours})
        print(f"{what:44} {spread(ours)}")
    for what, moved, copy in staging(rng):
        ours = timed(copy, args.seconds)
        results.append({"what": what, "twin_s": ours, "bytes": moved})
        print(f"{what:44} {moved / ours[0] / 1e9:7.1f} GB/s {spread(ours)}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    conditions = {"isa": args.isa, "threads": args.threads, "machine": platform.machine(), "system": platform.platform(), "commit": commit.stdout.strip()}
    print(json.dumps({"benchmark": "kernels", **conditions, "results": results}))


def prepared(program: Program, rng: np.random.Generator) -> tuple[Callable[[], None], int]:
    """A run of the program on surfaces of its own, and its floating-point operations in products."""
    device, ready = TwinDevice(), load_program(program, "benchmark")
    given, results = [device.allocate(t) for t in ready.inputs], [device.allocate(t) for t in ready.outputs]
    for buffer in given:
        buffer.array[...] = rng.standard_normal(buffer.array.shape).astype(np.float16)
    return lambda: device.run(ready, given, results), 2 * ready.stats.macs


def staging(rng: np.random.Generator) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """Copies between host and surfaces, with the bytes they read and write."""
    host = rng.standard_normal((2048, 4096)).astype(np.float32)
    surface = np.zeros(host.shape, np.float16)
    turned = np.zeros(host.shape[::-1], np.float16)
    moved = host.nbytes + surface.nbytes
    yield "stage 2048x4096", moved, lambda: native.stage(surface, host)
    yield "stage its transpose", moved, lambda: native.stage(turned, host.T)
    yield "unstage 2048x4096", moved, lambda: native.unstage(host, surface)
    yield "unstage its transpose", moved, lambda: native.unstage(host.T, turned)
    yield "sum of squares", host.nbytes, lambda: native.sum_of_squares([host])


def timed(run: Callable[[], object], seconds: float) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile of one run."""
    for _ in range(3):
        run()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 10:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    deciles = statistics.quantiles(times, n=10)
    return statistics.median(times), deciles[0], deciles[-1]


def spread(times: tuple[float, float, float]) -> str:
    return f"{times[0] * 1e3:7.3f} ms [{times[1] * 1e3:.3f}-{times[2] * 1e3:.3f}]"


if __name__ == "__main__":
    main()
