"""Spoiled programs beside a whole weight file: loading, evaluating and writing them anew ends in values or in our error.

python tests/mil/fuzz_load.py [COUNT] [SEED]
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from fuzz_mutations import mutations

from torchane import mil
from torchane.errors import TorchaneError
from torchane.mil.blobs import BlobWriter
from torchane.mil.types import DType

LIMIT_S = 5.0

_DTYPES = (DType.FP16, DType.INT4, DType.UINT1, DType.UINT3, DType.FP32)
_WRITER = BlobWriter()
_OFFSETS = [_WRITER.add(np.ones(24, dtype.numpy), dtype) for dtype in _DTYPES]
_FORM = """func main() {{ tensor<{0}, [2, 12]> y = const()[val = tensor<{0}, [2, 12]>(BLOBFILE(path = \
string("@model_path/weights/weight.bin"), offset = uint64({1})))]; tensor<fp16, [2, 2]> z = constexpr_affine_dequantize()[\
axis = int32(0), quantized_data = tensor<int8, [2, 2]>([[1, -2], [3, 4]]), scale = fp16(1e-06), zero_point = int8(0)]; }} -> (y);"""
SEEDS = tuple(_FORM.format(dtype.mil_name, offset) for dtype, offset in zip(_DTYPES, _OFFSETS))
TOKENS = (
    *map(str, _OFFSETS), "0", "1", "63", "65", "18446744073709551615", "9223372036854775807", "?", "int4", "uint6", "fp8e5m2",
    "bf16", "string", "bool", "uint64", "[24]", "[0, 12]", "[1152921504606846976]", "../", "@model_path", "weights", "\\x00",
)  # fmt: skip


def fuzz(count: int, seed: int = 0) -> Counter:
    """Runs `count` inputs and counts how they ended; raises AssertionError, with the input, for a forbidden end."""
    ends: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "weights").mkdir()
        Path(folder, "weights", "weight.bin").write_bytes(_WRITER.to_bytes())
        for text in mutations(SEEDS, TOKENS, count, seed):
            Path(folder, "model.mil").write_text(text, errors="surrogatepass")
            start = time.perf_counter()
            try:
                ends[_one(folder)] += 1
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error}\nfor the input {text!r}") from error
            assert time.perf_counter() - start < LIMIT_S, f"{time.perf_counter() - start:.1f} s for the input {text!r}"
    return ends


def _one(folder: str) -> str:
    try:
        program = mil.load(folder)
        mil.evaluate(program, {})
        mil.emit(program)
    except TorchaneError:
        return "refused"
    return "ran"


if __name__ == "__main__":
    how_many, first = (int(arg) for arg in (*sys.argv[1:], 10_000, 0)[:2])
    begin = time.perf_counter()
    print(dict(fuzz(how_many, first)), f"{time.perf_counter() - begin:.1f} s")
