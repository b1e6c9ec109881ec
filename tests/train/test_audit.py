"""What an audit reports: counted products against counting one by one, and a model whose gradients vanish."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

import torchane
from torchane.errors import UsageError
from torchane.mil import evaluate
from torchane.mil.build import Builder
from torchane.mil.engine.numbers import decoded, exponents
from torchane.mil.types import FP16, TensorType
from torchane.train.audit_products import magnitudes, product_counts


def product(x, y, **flags):
    b = Builder()
    vx, vy = (b.input(name, TensorType(FP16, value.shape)) for name, value in (("x", x), ("y", y)))
    out = b.matmul(x=vx, y=vy, **flags)
    program = b.program(out)
    result = evaluate(program, {"x": x, "y": y}, arithmetic="engine")[out.name]
    return product_counts(program.main.ops[-1], {vx: x, vy: y, out: result})


def test_dropped_products_are_counted_as_if_one_by_one():
    rng = np.random.default_rng(0)
    x, y = ((rng.standard_normal(s) * 2.0 ** rng.integers(-14, 2, s)).astype(np.float16) for s in ((2, 5, 9), (9, 7)))
    x[0, 0, :4] = 0
    counts = product(x, y)
    pairs = [(a, b) for m in x.reshape(-1, 9) for n in y.T for a, b in zip(decoded(m), decoded(n)) if a and b]
    held = [int(exponents(np.array(a)) + exponents(np.array(b))) for a, b in pairs]
    dropped = sum(total < -16 or abs(a * b) < 2.0**-18 for total, (a, b) in zip(held, pairs))
    assert (counts.products, counts.dropped) == (len(pairs), dropped) and dropped > 0


def test_transposed_operands_count_alike():
    x, y = (np.random.default_rng(s).standard_normal((6, 6)).astype(np.float16) * np.float16(1e-3) for s in (0, 1))
    plain, turned = product(x, y), product(x.T.copy(), y.T.copy(), transpose_x=True, transpose_y=True)
    assert plain == turned


def test_sums_near_and_past_the_range_are_counted():
    x = np.array([[100.0], [200.0], [10.0]], np.float16)
    counts = product(x, np.array([[100.0, 200.0]], np.float16))
    assert (counts.sums, counts.near, counts.overflowed) == (6, 4, 1)


def test_magnitudes_leave_out_zeros():
    found = magnitudes(np.array([0, -4, 2**-20, np.inf], np.float16))
    assert (found.count, found.zeros, found.largest, found.smallest) == (4, 1, 65536.0, 2.0**-20)


class Chain(nn.Module):
    """Two matrices, the second so small that nothing of the first's gradient survives."""

    def __init__(self, scale):
        super().__init__()
        self.first, self.second = nn.Linear(32, 64, bias=False), nn.Linear(64, 32, bias=False)
        with torch.no_grad():
            self.second.weight.mul_(scale)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


@pytest.fixture(scope="module")
def reports():
    torch.manual_seed(0)
    x, y = torch.randn(64, 32), torch.randn(64, 32)
    loss = nn.functional.mse_loss
    healthy, small = Chain(1.0), Chain(2.0**-20)
    return {name: (model, torchane.audit(model, (x, y), loss)) for name, model in (("healthy", healthy), ("small", small))}


def test_a_healthy_model_loses_nothing(reports):
    _, report = reports["healthy"]
    assert report.lost_parameters == ()
    assert abs(report.loss - report.loss_exact) < 0.01 * report.loss_exact
    assert report.dropped_share() < 0.1


def test_a_parameter_behind_tiny_weights_is_named(reports):
    _, report = reports["small"]
    assert report.lost_parameters == ("first.weight",)
    assert report.dropped_share("forward") > 0.3


def test_all_forwards_draw_the_same_masks_of_dropout():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.5), nn.Linear(64, 32))
    report = torchane.audit(model, (torch.randn(64, 32), torch.randn(64, 32)), nn.functional.mse_loss)
    for one in (report, report.controlled):
        assert one.loss == pytest.approx(one.loss_exact, rel=0.01)
        assert max(parameter.relative_error for parameter in one.parameters) < 0.02


def test_the_model_keeps_its_weights_and_has_no_gradients(reports):
    model, _ = reports["healthy"]
    assert all(param.grad is None for param in model.parameters())


def test_the_loss_scale_brings_the_largest_sum_near_the_range(reports):
    _, report = reports["healthy"]
    largest = max(f.magnitudes.largest for f in report.product_findings if f.graph == "backward")
    after = largest * report.recommended_loss_scale / report.loss_scale
    assert 2.0**11 < after <= 2.0**12


def test_the_report_can_be_read_by_people_and_programs(reports):
    _, report = reports["small"]
    assert "first.weight" in report.table() and "LOST" in report.table()
    data = json.loads(report.to_json())
    assert data["lost_parameters"] == ["first.weight"]
    assert {finding["graph"] for finding in data["findings"]} == {"forward", "backward"}
    picture = ElementTree.fromstring(report.to_svg())
    bars = [line for line in picture.iter("{http://www.w3.org/2000/svg}line") if line.get("class")]
    shown = (*report.product_findings, *report.controlled.product_findings)
    assert len(bars) == sum(f.magnitudes.largest > 0 for f in shown)


def test_range_control_brings_back_what_tiny_weights_lose(reports):
    _, report = reports["small"]
    after = report.controlled
    assert report.lost_parameters == ("first.weight",) and after.lost_parameters == ()
    assert after.dropped_share() < 0.01 < report.dropped_share()
    assert max(parameter.relative_error for parameter in after.parameters) < 0.01
    assert [f.where for f in after.product_findings] == [f.where for f in report.product_findings]


def test_the_table_names_what_is_lost_before_and_after(reports):
    _, report = reports["small"]
    before, after = report.table().split("With range control:")
    assert "lost parameters: first.weight" in before and "lost parameters: none" in after
    assert json.loads(report.to_json())["controlled"]["lost_parameters"] == []


def test_another_batch_is_refused():
    with pytest.raises(UsageError, match="must be"):
        torchane.audit(nn.Linear(2, 2), torch.zeros(2))
