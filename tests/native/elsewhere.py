"""Compiles csrc/ for machines that are not at hand, each source once, as many at a time as there are processors."""

import os
import struct
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
#: CI takes -O0, with which these checks fit in a minute or two.
OPTIMIZE = os.environ.get("TORCHANE_CHECK_OPTIMIZE", "-O2")
FLAGS = ["-std=c++20", OPTIMIZE, "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", "-DTORCHANE_ISA=base", "-pthread"]

#: All but the entrances from Python and what only x86-64 has.
KERNELS = [
    path
    for path in sorted([*CSRC.glob("*.cpp"), *(CSRC / "isa").glob("*.cpp")])
    if path.name not in ("module.cpp", "arrays.cpp", "matmul_amx.cpp", "matmul_bf16.cpp")
]
BRIDGE = [path for path in sorted((CSRC / "apple").glob("*.cpp")) if path.name != "bindings.cpp"]


def objects(compiler: Sequence[str], sources: Iterable[Path], folder: Path) -> list[Path]:
    """One object file for each source."""

    def compiled(source: Path) -> Path:
        target = folder / f"{source.parent.name}-{source.stem}.o"
        call([*compiler, *FLAGS, "-c", str(source), "-o", str(target)])
        return target

    folder.mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compiled, sources))


def link(compiler: Sequence[str], parts: Iterable[Path], target: Path) -> Path:
    call([*compiler, "-pthread", *map(str, parts), "-o", str(target)])
    return target


def call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


_MAGIC, _SYMTAB = 0xFEEDFACF, 0x2
_STAB, _TYPE, _EXTERNAL = 0xE0, 0x0E, 0x01


def symbols(data: bytes) -> tuple[set[str], set[str]]:
    """The names that a Mach-O object defines for others, and those that it wants from elsewhere."""
    magic, _, _, _, count, _, _, _ = struct.unpack_from("<8I", data)
    assert magic == _MAGIC
    defined: set[str] = set()
    wanted: set[str] = set()
    at = 32
    for _ in range(count):
        command, size = struct.unpack_from("<2I", data, at)
        if command == _SYMTAB:
            first, entries, strings, _ = struct.unpack_from("<4I", data, at + 8)
            for entry in range(entries):
                name_at, kind = struct.unpack_from("<IB", data, first + 16 * entry)
                if kind & _STAB or not kind & _EXTERNAL:
                    continue
                start = strings + name_at
                name = data[start : data.index(b"\0", start)].decode()
                (defined if kind & _TYPE else wanted).add(name)
        at += size
    return defined, wanted
