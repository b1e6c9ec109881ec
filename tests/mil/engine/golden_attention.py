"""The captured attention: a program, its input, and what a real engine gave. Source: Espresso, MIT; see its MANIFEST."""

from pathlib import Path

import numpy as np

from torchane.mil.blobs import BlobFile
from torchane.mil.constants import inline_constants, load_blobs
from torchane.mil.ir import Program
from torchane.mil.text import parse

SHAPE = (1, 768, 1, 64)


def program(folder: Path) -> Program:
    text = (folder / "full_fused.mil").read_text(encoding="utf-8")
    parsed = parse(text, "full_fused.mil")
    return inline_constants(load_blobs(parsed, lambda path: BlobFile.open(folder / f"full_fused_{path.rsplit('/', 1)[1]}")))


def inputs(folder: Path) -> dict[str, np.ndarray]:
    values = np.fromfile(folder / "full_fused_input_seq64_f32le.bin", "<f4").reshape(SHAPE)
    return {"x": values.astype(np.float16)}


def outputs(folder: Path) -> np.ndarray:
    return np.fromfile(folder / "full_fused_out_seq64_f32le.bin", "<f4").reshape(SHAPE).astype(np.float16)
