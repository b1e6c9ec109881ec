"""Spoiled weight files: reading gives an array within the file or a BlobError that names a byte.

python tests/mil/fuzz_blobs.py [COUNT] [SEED]
"""

import struct
import sys
import time
from collections import Counter

import numpy as np
from fuzz_mutations import mutations

from torchane.mil.blobs import CODES, BlobError, BlobFile, BlobWriter
from torchane.mil.types import DType

LIMIT_S = 5.0


def _file(*dtypes: DType) -> bytes:
    writer = BlobWriter()
    for size, dtype in enumerate(dtypes, 3):
        writer.add(np.ones(size * 5, dtype.numpy), dtype)
    return writer.to_bytes()


SEEDS = (_file(DType.FP16), _file(DType.INT4, DType.UINT1, DType.UINT3), _file(*CODES), _file())
TOKENS = (
    *(struct.pack("<I", value) for value in (0, 1, 2, 8, 9, 17, 18, 64, 0xDEADBEEF, 0x7FFFFFFF, 0xFFFFFFFF)),
    *(struct.pack("<Q", value) for value in (0, 7, 64, 128, 1 << 32, 1 << 60, (1 << 63) - 1, (1 << 64) - 1)),
    struct.pack("<IIQQQ", 0xDEADBEEF, 8, 3, 128, 4),
    bytes(64), b"\xff", b"\x00",
)  # fmt: skip


def fuzz(count: int, seed: int = 0) -> Counter:
    """Runs `count` inputs and counts how they ended; raises AssertionError, with the input, for a forbidden end."""
    ends: Counter = Counter()
    for data in mutations(SEEDS, TOKENS, count, seed):
        start = time.process_time()
        try:
            ends[_one(data)] += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\nfor the input {data.hex()}") from error
        assert time.process_time() - start < LIMIT_S, f"{time.process_time() - start:.1f} s for {data.hex()}"
    return ends


def _one(data: bytes) -> str:
    try:
        file = BlobFile.from_bytes(data)
        offsets = {64, 128, 192}
    except BlobError as error:
        assert 0 <= error.offset <= len(data)
        return "no file"
    end = "no record"
    survey = file.survey()
    assert all(fault.offset >= 0 for fault in survey.faults)
    offsets |= {record.offset for record in survey.records}
    try:
        offsets |= {record.offset for record in file.records()}
    except BlobError as error:
        assert error.offset >= 0
    for offset in offsets:
        try:
            _, elements = file.read(offset)
            assert elements.nbytes <= 8 * len(data)
            end = "read"
            file.read_as(offset, DType.FP32)
            file.read_as(offset, DType.UINT3)
        except BlobError as error:
            assert error.offset >= 0
    return end


if __name__ == "__main__":
    count, seed = (int(arg) for arg in (*sys.argv[1:], 10_000, 0)[:2])
    begin = time.perf_counter()
    print(dict(fuzz(count, seed)), f"{time.perf_counter() - begin:.1f} s")
