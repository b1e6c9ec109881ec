"""A program's price: sums, intervals, and what is said of what no figure speaks of."""

import json
import subprocess
import sys

import numpy as np
import pytest

from torchane.mil.build import Builder
from torchane.mil.ir import literal
from torchane.plan import price_program, pricing_for


def dense(inner: int, outer: int, columns: int, layers: int = 1):
    b = Builder()
    y = b.input("x", (1, inner, 1, columns))
    for _ in range(layers):
        y = b.conv(x=y, weight=literal(np.zeros((outer, inner, 1, 1), np.float16)), pad_type="valid")
    return b.program(b.exp(x=y))


@pytest.mark.parametrize("name", ["m1", "m2max", "m3pro", "m4", "m4max", "m5", "m6"])
def test_the_total_is_the_sum_of_its_parts(name):
    price = price_program(dense(768, 768, 256, 3), pricing_for(name))
    assert price.predicted_ms == pytest.approx(price.dispatch_ms + price.surfaces_ms + sum(op.predicted_ms for op in price.ops))
    assert price.predicted_mj == pytest.approx(price.awake_mj + sum(op.predicted_mj for op in price.ops))
    assert price.interval_ms[0] < price.predicted_ms < price.interval_ms[1]
    assert price.interval_mj[0] < price.predicted_mj < price.interval_mj[1]
    assert price.package_mj > price.predicted_mj
    assert 0 < price.share_of_peak <= 1


def test_published_runs_lie_within_the_interval_of_most():
    """Rows of points.toml, priced from MIL: SLV M4 768 -> 2048 @256, QANE M5 Max 6144 -> 2560 @32."""
    for name, program, published in (("m4", dense(768, 2048, 256), 0.137), ("m5max", dense(6144, 2560, 32), 0.308)):
        low, high = price_program(program, pricing_for(name)).interval_ms
        assert low <= published <= high


def test_a_chip_or_a_form_outside_the_data_says_so():
    assert price_program(dense(768, 768, 256), pricing_for("m4")).outside == ()
    (said,) = price_program(dense(768, 768, 256), pricing_for("m4pro")).outside
    assert "no published figure of m4pro" in said
    b = Builder()
    y = b.softmax(x=b.matmul(x=b.input("x", (1, 8, 2048, 64)), y=b.input("y", (1, 8, 64, 2048))), axis=-1)
    (said,) = price_program(b.program(y), pricing_for("m4")).outside
    assert "products with an input as weights, softmax" in said


def test_m6_is_priced_and_says_that_no_file_speaks_of_it():
    assert price_program(dense(768, 768, 256), pricing_for("m6")).outside == ("no file says what m6 takes: the one of m5 stands in",)


def test_slow_multiples_are_marked():
    (slow, _) = price_program(dense(2048, 4096, 32), pricing_for("m4")).ops
    (fast, _) = price_program(dense(2048, 4096, 32), pricing_for("m5")).ops
    assert (slow.slow_multiple, fast.slow_multiple) == (True, False)


def test_a_price_is_json():
    json.dumps(price_program(dense(64, 64, 32), pricing_for("m1")).to_dict())


def test_the_library_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import torchane.plan, torchane.plan.step, torchane.plan.schedules"
    subprocess.run([sys.executable, "-c", code], check=True)
