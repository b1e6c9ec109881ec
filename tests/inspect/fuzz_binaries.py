"""Spoiled model files, .hwx files and E5 descriptors: each ends in a value or in a FormatError that names a byte.

What reads is described as `torchane inspect` does, and a .hwx is written back to the same bytes. python tests/inspect/fuzz_binaries.py KIND [COUNT] [SEED]
"""

import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mil"))

from fuzz_mutations import mutations
from inspect_samples import e5_descriptor, h13_file, model_file, pipeline_file, stream_file

from torchane.inspect import e5, hwx, mlmodel
from torchane.inspect.errors import FormatError
from torchane.inspect.hwx.describe import describe
from torchane.inspect.report import report

LIMIT_S = 5.0

TOKENS = (
    *(struct.pack("<I", value) for value in (0, 1, 2, 4, 6, 8, 16, 0x19, 0x31, 0x40, 0x100, 0x7FFFFFFF, 0xFFFFFFFF)),
    *(struct.pack("<Q", value) for value in (0, 64, 1 << 32, 1 << 60, (1 << 64) - 1)),
    *(bytes([byte]) for byte in (0, 1, 2, 8, 10, 18, 26, 34, 42, 127, 128, 255)),
    b"\x0a\x00", b"\x12\x02\x0a\x00", b"\x80" * 9 + b"\x01", b"\xff" * 10, b"\x0b\x0c", b"\xb2\x1f", bytes(64),
)  # fmt: skip


def model(data: bytes) -> str:
    found = mlmodel.parse(data)
    if found.program is not None:
        report(found.program)
    return "read"


def engine_program(data: bytes) -> str:
    found = hwx.parse(data)
    assert hwx.to_bytes(found) == data, "another file is written than was read"
    describe(found)
    return "tasks" if any(stream.tasks for stream in found.tasks) else "read"


def descriptor(data: bytes) -> str:
    e5.parse_descriptor(data)
    return "read"


def samples() -> dict[str, tuple[Callable[[bytes], str], Sequence[bytes]]]:
    """Per kind what reads it, and files that are whole."""
    return {
        "model": (model, (model_file(), model_file(large=True), pipeline_file())),
        "hwx": (engine_program, (h13_file(), stream_file(5), stream_file(7), stream_file(11))),
        "e5": (descriptor, (e5_descriptor(),)),
    }


def fuzz(kind: str, count: int, seed: int = 0, seeds: Sequence[bytes] | None = None) -> Counter:
    """Runs `count` inputs and counts how they ended; raises AssertionError, with the input, for a forbidden end."""
    read, own = samples()[kind]
    ends: Counter = Counter()
    for data in mutations(seeds or own, TOKENS, count, seed):
        start = time.process_time()
        try:
            ends[read(data)] += 1
        except FormatError as error:
            assert 0 <= error.offset <= len(data), f"offset {error.offset} of {len(data)}: {data.hex()}"
            ends["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}\nfor the input {data.hex()}") from error
        assert time.process_time() - start < LIMIT_S, f"{time.process_time() - start:.1f} s for {data.hex()}"
    return ends


if __name__ == "__main__":
    chosen = sys.argv[1]
    how_many, first = (int(arg) for arg in (*sys.argv[2:], 10_000, 0)[:2])
    begin = time.perf_counter()
    print(chosen, dict(fuzz(chosen, how_many, first)), f"{time.perf_counter() - begin:.1f} s")
