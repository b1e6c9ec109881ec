"""The machine's own peak: the fastest product of matrices that fit the cache, by torch and by the twin's kernels.

    fp32    products of fp32 numbers, by torch: what the twin's `exact` arithmetic has at most where there are no matrix tiles
    bf16    products of bf16 numbers, by torch
    exact, fast    the twin's own
    memory  bytes read and written by a copy between tensors that no cache holds, by torch

512 x 512 matrices: 1 MiB each in fp32; 128 MiB are copied. Taken between the rounds of a benchmark, so that a noisy moment falls on both; the best counts.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from torchane import native
from torchane.mil.build import Builder
from torchane.runtime.twin import TwinDevice, load_program

SIZE = 512
COPIED_BYTES = 128 << 20
REPEATS = 5


class Peak:
    """Keeps the best of all measurements. threads: that torch and the kernels may use in this process meanwhile."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.gflops: dict[str, float] = {}
        self.bytes_per_s = 0.0
        self._products = _products()

    def measure(self) -> None:
        before, kernels_before = torch.get_num_threads(), native.get_threads() if native.is_built() else 0
        torch.set_num_threads(self.threads)
        if native.is_built():
            native.set_threads(self.threads)
        try:
            for kind, product in self._products.items():
                for _ in range(REPEATS):
                    began_s = time.perf_counter()
                    product()
                    took_s = time.perf_counter() - began_s
                    self.gflops[kind] = max(self.gflops.get(kind, 0.0), 2 * SIZE**3 / took_s / 1e9)
            self._copy()
        finally:
            torch.set_num_threads(before)
            if native.is_built():
                native.set_threads(kernels_before)

    def _copy(self) -> None:
        source, target = torch.ones(COPIED_BYTES // 4), torch.zeros(COPIED_BYTES // 4)  # memory that is there, and goes after it
        for _ in range(REPEATS):
            began_s = time.perf_counter()
            target.copy_(source)
            self.bytes_per_s = max(self.bytes_per_s, 2 * COPIED_BYTES / (time.perf_counter() - began_s))

    def of(self, variant: str) -> float:
        """FLOP/s at most that the numbers of this variant can be multiplied at: bf16's for `twin-fast`, for others fp32's or our own exact
        ones, whichever is more."""
        kinds = ("bf16", "fast") if variant == "twin-fast" else ("fp32", "exact")
        return max(self.gflops.get(kind, 0.0) for kind in kinds) * 1e9

    def to_dict(self) -> dict[str, float]:
        return dict(self.gflops)


def _products() -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(SIZE, SIZE, generator=generator) for _ in range(2))
    low_x, low_y = x.bfloat16(), y.bfloat16()
    found: dict[str, Callable[[], object]] = {"fp32": lambda: torch.mm(x, y), "bf16": lambda: torch.mm(low_x, low_y)}
    if native.is_built():
        found |= {arithmetic: _ours(arithmetic, x, y) for arithmetic in ("exact", "fast") if arithmetic == "exact" or native.has_fast()}
    return found


def _ours(arithmetic: str, x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    b = Builder()
    program = load_program(b.program(b.matmul(x=b.input("x", (SIZE, SIZE)), y=b.input("y", (SIZE, SIZE)))), "peak", arithmetic)
    device = TwinDevice(arithmetic=arithmetic)
    inputs, out = [x.numpy().astype(np.float16), y.numpy().astype(np.float16)], np.empty((SIZE, SIZE), np.float16)
    return lambda: device.run_arrays(program, inputs, [out])
