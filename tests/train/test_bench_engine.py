"""What `torchane bench layer` and `bench peak` count and say; their times are the machine's own."""

import numpy as np
import pytest

from torchane.errors import UsageError
from torchane.runtime import power
from torchane.train import bench_engine


def row(report, what):
    return next(one for one in report["results"] if one["what"] == what)


def test_a_stack_counts_its_products():
    report = bench_engine.bench_peak(repeats=2, power_s=0.0, sizes=(64,), depth=3)
    for kind in ("conv", "matmul"):
        found = row(report, f"{kind} 64 x 64, 3 deep")
        assert found["flop"] == 2 * 3 * 64**3
        assert found["TFLOPS"] == pytest.approx(found["flop"] / found["device ms"] / 1e9)
        assert found["share of peak"] is None and found["no share"] == "the twin is no engine"


def test_what_others_published_has_a_column_of_its_own():
    report = bench_engine.bench_peak(repeats=2, power_s=0.0, sizes=(32,), depth=1)
    head, line = (next(one for one in bench_engine.to_table(report).splitlines() if words in one) for words in ("10-90 %", "conv 32"))
    at = head.index("published")
    assert "maderix" in line[at:] and "maderix" not in line[:at]
    assert "It says nothing about an engine's" in bench_engine.to_table(report)


def test_inputs_are_no_zeros(monkeypatch):
    seen = []
    plain = bench_engine._times
    monkeypatch.setattr(bench_engine, "_times", lambda run, repeats: seen.append(run) or plain(run, repeats))
    bench_engine.bench_peak(repeats=1, power_s=0.0, sizes=(32,), depth=1)
    for run in seen:
        given = next(cell.cell_contents for cell in run.__closure__ if isinstance(cell.cell_contents, list) and cell.cell_contents)
        assert all(np.count_nonzero(buffer.array) > 0.9 * buffer.array.size for buffer in given)


def test_watts_that_do_not_move_are_not_given(monkeypatch):
    still = power.Drawn("a meter", {"package": 9.0}, {"package": 9.1}, {"a meter": "none of its rails moved"})
    moved = power.Drawn("a meter", {"package": 9.0, "DRAM": 1.0}, {"package": 29.0, "DRAM": 1.01}, {})
    for drawn, watts in ((still, {}), (moved, {"package": 29.0})):
        monkeypatch.setattr(power, "drawn", lambda run, seconds, drawn=drawn: drawn)
        report = bench_engine.bench_peak(repeats=1, power_s=1.0, sizes=(32,), depth=1)
        found = report["results"][0]
        assert found["watts"] == watts and bool(found["no watts"]) == (not watts)
        assert (found["TFLOPS/W"] is None) == (not watts)
        assert ("a meter: package 29.00 W (9.00 at rest), DRAM 1.01 W (1.00 at rest; it does not move)" in bench_engine.to_table(report)) == bool(watts)


@pytest.mark.parametrize("shape", ["768", "a,b", "768,512,1", "100,512", "768,33", "0,0", "-64,32"])
def test_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(UsageError, match="--shape"):
        bench_engine.bench_layer(shape)


@pytest.mark.long
def test_a_layer_counts_what_its_weights_gradients_take():
    """dW: as many multiply-adds as each weight has numbers, for every token."""
    report = bench_engine.bench_layer("64,32", repeats=2, power_s=0.0)
    dim, inner = 64, 192
    weights = 4 * dim * dim + 3 * dim * inner
    assert row(report, "forward")["flop"] >= 2 * 32 * weights
    assert row(report, "dx and dW")["flop"] - row(report, "dx")["flop"] == pytest.approx(2 * 32 * weights, rel=0.05)
