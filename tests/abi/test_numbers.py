"""The numbers of the number format against NumPy's fp16, and that no other file writes them again."""

import ast
from pathlib import Path

import numpy as np

from torchane import chips
from torchane.abi.numbers import (
    EXCLUDED,
    EXCLUDED_BELOW,
    FP16_MAX,
    FP16_SMALLEST,
    FP16_SMALLEST_NORMAL,
    LEFT_OUT,
    MASKED,
    SUM_MAX,
)

SOURCE = Path(__file__).resolve().parents[2] / "src" / "torchane"
HALF = np.finfo(np.float16)


def test_fp16_ends_where_numpy_says() -> None:
    assert (FP16_MAX, FP16_SMALLEST, FP16_SMALLEST_NORMAL) == (HALF.max, HALF.smallest_subnormal, HALF.smallest_normal)


def test_the_largest_sum_is_what_the_chips_data_file_says() -> None:
    assert chips.load().limit("accumulator_ceiling") == SUM_MAX


def test_a_masked_score_stays_finite_and_weighs_nothing() -> None:
    """Two masks added and a score of any size that attention has; e^-9000 is 0 in any format."""
    for penalty in (MASKED, EXCLUDED, 2 * MASKED, 2 * EXCLUDED):
        assert np.isfinite(np.float16(penalty) + np.float16(-1000)) and np.float16(penalty) + np.float16(1000) <= -9000


def test_excluded_is_told_from_masked_whatever_the_score() -> None:
    assert EXCLUDED + 4000 < EXCLUDED_BELOW < 2 * MASKED - 4000


def test_left_out_is_far_beyond_what_fp16_holds() -> None:
    assert LEFT_OUT < -FP16_MAX and np.array(LEFT_OUT, np.float32) == LEFT_OUT


def test_no_other_file_writes_these_numbers() -> None:
    """As numbers; text and comments may. mil/, which stands above, takes fp16's end from NumPy."""
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path != SOURCE / "abi" / "numbers.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value in (FP16_MAX, SUM_MAX, -EXCLUDED, -EXCLUDED_BELOW)
    ]
    assert not found, f"take them from torchane.abi.numbers: {', '.join(found)}"
