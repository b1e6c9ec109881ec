"""Doctor's probes: what public reports disagree on or nobody has tried, asked of this machine's framework.

P1 identifiers   P2 form of weights   P3 load alone   P4 kept compiled   P5 weight files   P6 mutable weights   P7 weights of 1 MiB
a core   P9 unequal surfaces. (P8, a dispatch that does not return, is what doctor's child is for.)
Each takes an open device and gives a dict that JSON can hold. Nothing here decides whether an engine is used.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from torchane import native
from torchane.errors import AppleError
from torchane.mil.blobs import BlobFile, BlobWriter
from torchane.mil.build import Builder
from torchane.mil.ir import Var
from torchane.mil.name_constants import name_constants
from torchane.mil.save import WEIGHT_PATH, emit
from torchane.mil.types import FP16
from torchane.runtime.ane.device import AneDevice
from torchane.runtime.ane.doctor.measure import Finding, beside_the_twin, conv, handed_over, timed
from torchane.runtime.ane.source import places, source_of

#: Selectors of macOS 27 by which weights could change without a load. Nobody has published a call, nor their types: these are
#: looked up, and nothing is sent.
MUTABLE_WEIGHTS = (
    ("_ANEClient", "-", "mapMutableWeightsForModel:andProcedure:mappedWeightsBuffer:size:error:"),
    ("_ANEClient", "-", "syncMutableWeightsForModel:andProcedure:fromOffset:withSize:error:"),
    ("_ANEClient", "-", "unmapMutableWeightsForModel:andProcedure:"),
    ("_ANEWeight", "+", "weightWithSymbol:"),
)
#: One convolution of two halves' work that takes so much longer than both halves streams weights slowly (reports: 1.4 to 2.7).
STREAMS_SLOWLY = 1.4


def _one_conv(seed: int) -> tuple[str, dict[str, bytes]]:
    b = Builder()
    weight = np.random.default_rng(seed).standard_normal((32, 32, 1, 1)).astype(np.float16)
    return emit(name_constants(b.program(b.conv(x=b.input("a0_x", (1, 32, 1, 32)), weight=weight, name="z0_y"))))


def _made(device: AneDevice, folder: Path, text: str, weights: dict[str, bytes], bytes_alone: bool = False) -> Any:
    """Of one input and one output."""
    return handed_over(device, folder, text, weights, ["a0_x"], ["z0_y"], bytes_alone)


def _identifiers(device: AneDevice) -> Finding:
    """P1: do programs of one text and other weights have other identifiers?"""
    (text, one), (_, other) = _one_conv(0), _one_conv(1)
    with tempfile.TemporaryDirectory() as folder:
        names = [_made(device, Path(folder) / str(i), text, blobs).identifier for i, blobs in enumerate((one, other))]
    return {"identifiers differ": names[0] != names[1], "route has identifiers": bool(names[0])}


def _load_alone(device: AneDevice) -> Finding:
    """P3: does a load without a compilation compile by itself?"""
    text, blobs = _one_conv(2)
    made = source_of(text, blobs)
    with tempfile.TemporaryDirectory() as folder:
        ready = _made(device, Path(folder), made.text, dict(made.weights))
        try:
            ready.load()
        except AppleError as error:
            return {"loads": False, "error": str(error)}
        ready.unload()
    return {"loads": True}


def _kept_compiled(device: AneDevice) -> Finding:
    """P4: is a compiled program found again, and how long does it take to load?"""
    text, blobs = _one_conv(3)
    made = source_of(text, blobs)
    found: Finding = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in ("first", "second"):
            ready = _made(device, Path(folder), made.text, dict(made.weights))
            found[f"{turn}: is compiled"] = ready.is_compiled()
            start = time.perf_counter()
            if not ready.is_compiled():
                ready.compile()
            ready.load()
            found[f"{turn}: ready after ms"] = round((time.perf_counter() - start) * 1e3, 3)
            ready.unload()
    return found


def _chain(count: int) -> tuple[str, dict[str, bytes], np.ndarray, np.ndarray]:
    """`count` convolutions by different diagonal matrices: text, weights, an input and what must come out."""
    b = Builder()
    x = b.input("a0_x", (1, 32, 1, 32))
    value: Var = x
    scale = 1.0
    for index in range(count):
        factor = 1.0 + (index % 4) / 4 if index % 2 else 1.0 / (1.0 + (index % 4) / 4)
        half = np.float16(factor)
        scale *= float(half)
        weight = (np.eye(32) * half).astype(np.float16).reshape(32, 32, 1, 1)
        weight[0, 1, 0, 0] = np.float16(index * 2.0**-14)  # no two are equal
        value = b.conv(x=value, weight=weight)
    text, blobs = emit(name_constants(b.program(b.mul(x=value, y=1.0, name="z0_y"))))
    given = np.zeros((1, 32, 1, 32), np.float16)
    given[0, 2:] = 1.0  # rows that the odd entry does not reach
    return text, blobs, given, np.full((30, 32), scale)


def _run_chain(device: AneDevice, text: str, weights: dict[str, bytes], given: np.ndarray, want: np.ndarray, bytes_alone: bool = False) -> Finding:
    made = source_of(text, weights)
    with tempfile.TemporaryDirectory() as folder:
        try:
            ready = _made(device, Path(folder), made.text, dict(made.weights), bytes_alone)
            ready.compile()
            ready.load()
        except AppleError as error:
            return {"compiles": False, "error": str(error)}
        try:
            attributes = ready.attributes()
            ready.bind(places(["a0_x"], False, attributes, "probe"), places(["z0_y"], True, attributes, "probe"), [given.nbytes])
            surfaces = [native.apple.Surface(device.route, given.nbytes) for _ in range(2)]
            arrays = [surface.memory[: given.nbytes].view(np.float16).reshape(given.shape) for surface in surfaces]
            arrays[0][...] = given
            ready.run(surfaces[:1], surfaces[1:])
            return {"compiles": True, "numbers are right": bool(np.allclose(arrays[1][0, 2:, 0], want, rtol=0.05))}
        finally:
            ready.unload()


def _weight_files(device: AneDevice) -> Finding:
    """P5: how many weight files may a program have?"""
    found: Finding = {}
    for count in (16, 17):
        text, blobs, given, want = _chain(count)
        found[f"{count} files"] = _run_chain(device, *_apart(text, blobs), given, want)
    return found


def _apart(text: str, blobs: dict[str, bytes]) -> tuple[str, dict[str, bytes]]:
    """Every constant in a file of its own, without the limit that `separated` keeps."""
    packed = BlobFile.from_bytes(blobs[WEIGHT_PATH])
    files: dict[str, bytes] = {}
    for index, record in enumerate(packed.records()):
        writer = BlobWriter()
        writer.add(packed.read_as(record.offset, FP16), FP16)
        path = f"@model_path/weights/p{index:02d}.bin"
        files[path] = writer.to_bytes()
        text = text.replace(f'"{WEIGHT_PATH}"), offset = uint64({record.offset}))', f'"{path}"), offset = uint64(64))')
    return text, files


def _packed_blocks(device: AneDevice) -> Finding:
    """P5b: is each of 17 blocks of one file read at its own place?"""
    text, blobs, given, want = _chain(17)
    return _run_chain(device, text, blobs, given, want)


def _unequal_surfaces(device: AneDevice) -> Finding:
    """P9: may the surfaces of a program differ in size?"""
    if device.equal_surfaces:
        return {"may differ": False}
    b = Builder()
    program = b.program(b.matmul(x=b.input("a0_x", (1, 1, 64, 1024)), y=b.input("a1_y", (1, 1, 1024, 32)), name="z0_y"))
    rng = np.random.default_rng(0)
    arrays = {var.name: (rng.standard_normal(var.shape) / 8).astype(np.float16) for var in program.inputs}
    return {"may differ": beside_the_twin(device, program, arrays)["ok"]}


def _weight_entries(device: AneDevice) -> Finding:
    """P2: may a weight's entry hold its bytes alone?"""
    if device.route != "memory":
        return {"asked": f"not on the route {device.route}"}
    text, blobs, given, want = _chain(3)
    return _run_chain(device, text, blobs, given, want, bytes_alone=True)


def _mutable_weights(device: AneDevice) -> Finding:
    """P6: are there calls that change weights in place, and of which types?"""
    return {f"{sign}[{kind} {name}]": native.apple.encoding_of(kind, sign, name) or "absent" for kind, sign, name in MUTABLE_WEIGHTS}


def _slow_streams(device: AneDevice) -> Finding:
    """P7: do weights of exactly 1 MiB a core take longer than their halves?"""
    whole = timed(device, conv(2048, 32, outputs=4096), 2 * 2048 * 4096 * 32)
    half = timed(device, conv(2048, 32, outputs=2048), 2 * 2048 * 2048 * 32)
    ratio = whole["median us"] / (2 * half["median us"])
    return {"2048 to 4096, us": whole["median us"], "2048 to 2048, us": half["median us"], "whole / two halves": round(ratio, 3), "streams slowly": ratio > STREAMS_SLOWLY}


PROBES: tuple[Callable[[AneDevice], Finding], ...] = (
    _identifiers, _weight_entries, _load_alone, _kept_compiled, _weight_files, _packed_blocks, _mutable_weights, _slow_streams, _unequal_surfaces,
)  # fmt: skip
