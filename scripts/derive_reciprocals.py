"""Which reciprocals did the engine use in a captured softmax?    python scripts/derive_reciprocals.py CAPTURE [--write]

CAPTURE is the folder of Espresso's attention (training/golden_outputs, MIT): a program of 12 heads over 64 tokens.
Each output of a token depends on the reciprocals of its 12 row sums, and on nothing else that is unknown. For every
token this tries the fp16 numbers next to 1 / s, keeps the choice that reproduces all 768 outputs, and requires
that the mantissa of s alone decides. --write stores the result where `torchane.mil.engine` reads it.
"""

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from torchane.mil import evaluate
from torchane.mil.blobs import BlobFile
from torchane.mil.constants import inline_constants, load_blobs
from torchane.mil.engine import Settings, engine, products
from torchane.mil.engine.numbers import halves, rounded
from torchane.mil.engine.settings import Softmax
from torchane.mil.engine.softmax import exponentials, row_sum
from torchane.mil.text import parse

HEADS, TOKENS, SIZE = 12, 64, 64
SETTINGS = Settings(softmax=Softmax(reciprocal="nearest"))
TARGET = Path(__file__).resolve().parents[1] / "src" / "torchane" / "mil" / "engine" / "reciprocals.json"
SOURCE = (
    "christopherkarani/Espresso, training/golden_outputs at cb98863c77fd, MIT: attention of 12 heads over 64 tokens on a real "
    "engine, chip and macOS build not recorded. Derived by scripts/derive_reciprocals.py."
)


def nearest_reciprocal(mantissa: int) -> int:
    """The bits of the fp16 number nearest to 1 / (1 + mantissa / 1024)."""
    return int(halves(np.array(1 / (1 + mantissa / 1024))).view(np.uint16))


def captured(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores after the mask (12, 64, 64), V (12, 64, 64), the last weight (768, 768) and the outputs (768, 64)."""
    program = parse((folder / "full_fused.mil").read_text(encoding="utf-8"), "full_fused.mil")
    program = load_blobs(program, lambda path: BlobFile.open(folder / f"full_fused_{path.rsplit('/', 1)[1]}"))
    weight = next(op.attrs["val"].value for op in program.main.ops if op.output.name == "Wout")
    function = inline_constants(program).main
    inner = tuple(op.output for op in function.ops if op.output.name in ("masked", "v"))
    x = np.fromfile(folder / "full_fused_input_seq64_f32le.bin", "<f4").reshape(1, 768, 1, 64).astype(np.float16)
    found = evaluate(replace(function, outputs=inner), {"x": x}, arithmetic=engine(SETTINGS))
    out = np.fromfile(folder / "full_fused_out_seq64_f32le.bin", "<f4").reshape(768, 64).astype(np.float16)
    return found["masked"][0], found["v"][0], weight.reshape(768, 768), out


def partial_sums(powers: np.ndarray, r: np.ndarray, v: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(12, 64, 768): what each head adds to the outputs of each token, in units of 2^-16, if 1 / s is r (12, 64)."""
    p = rounded(powers * r[..., None])
    attended = rounded(products.sums(p, v.astype(np.float64), SETTINGS.products))
    parts = weight.astype(np.float64).reshape(768, HEADS, SIZE)
    return np.stack([products.sums(attended[h], parts[:, h].T, SETTINGS.products) for h in range(HEADS)])


def derive(folder: Path) -> tuple[dict[int, int], int]:
    """By mantissa the bits of 1 / s for s in [1, 2), and how many rows show them."""
    masked, v, weight, out = captured(folder)
    powers = exponentials(masked.astype(np.float64), SETTINGS)
    total = row_sum(powers, SETTINGS)
    mantissas = (np.frexp(total)[0] * 2048).astype(int) % 1024
    nearest = halves(1 / total).view(np.uint16).astype(int)
    shifts = (0, -1, 1)
    sums = {d: partial_sums(powers, (nearest + d).astype(np.uint16).view(np.float16).astype(np.float64), v, weight) for d in shifts}
    known: dict[int, int] = {}
    pending = list(range(TOKENS))
    while pending:
        undecided = []
        for token in pending:
            fits = _fits(sums, mantissas[:, token], known, out[:, token], token)
            assert fits, f"token {token}: no choice of neighbours of 1/s gives its outputs, with what earlier tokens decided"
            if len(fits) > 1:
                undecided.append(token)
                continue
            known |= fits[0]
        assert len(undecided) < len(pending), f"tokens {undecided} fit several choices"
        pending = undecided
    bits = {m: nearest_reciprocal(m) + known[m] for m in sorted(known)}
    return bits, mantissas.size


def _fits(sums: dict[int, np.ndarray], mantissas: np.ndarray, known: dict[int, int], out: np.ndarray, token: int) -> list[dict[int, int]]:
    """Every consistent choice of shifts by mantissa that gives the token's outputs, fewest shifts first found alone."""
    free = [m for m in dict.fromkeys(mantissas.tolist()) if m not in known]
    base = sum(sums[known.get(m, 0)][h, token] for h, m in enumerate(mantissas.tolist()))
    for count in range(min(5, len(free)) + 1):
        fits = []
        for chosen in itertools.combinations(free, count):
            for shifts in itertools.product((-1, 1), repeat=count):
                trial = dict(zip(chosen, shifts))
                change = sum(sums[trial[m]][h, token] - sums[0][h, token] for h, m in enumerate(mantissas.tolist()) if m in trial)
                if np.array_equal(halves(base + change), out):
                    fits.append(dict.fromkeys(free, 0) | trial)
        if fits:
            return fits
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture", type=Path)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    bits, rows = derive(args.capture)
    shifted = {m: b - nearest_reciprocal(m) for m, b in bits.items() if b != nearest_reciprocal(m)}
    print(f"{len(bits)} mantissas in {rows} rows, no contradiction; {len(bits) - len(shifted)} are the nearest fp16 of 1 / s")
    for mantissa, shift in shifted.items():
        print(f"  1 + {mantissa}/1024: {shift:+d} step")
    if args.write:
        lines = ",\n  ".join(f'"{m}": {b}' for m, b in bits.items())
        TARGET.write_text(f'{{"source": {json.dumps(SOURCE)},\n "what": "mantissa of s (ten bits) -> fp16 bits of 1/s for s in [1, 2)",\n "rows": {rows},\n "reciprocals": {{\n  {lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
