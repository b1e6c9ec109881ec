import pytest

from torchane import chips
from torchane.chips.points import Layer, Machine, machine, machines, points
from torchane.errors import UsageError

SCORED = [point for point in points() if not point.unusable]


def test_every_figure_has_a_source_and_a_machine_with_a_clock():
    assert len(points()) == 215
    for point in points():
        assert point.source.strip() and point.ms > 0
        assert point.unusable or point.chip in machines()


def test_a_third_is_held_out_by_chip_and_by_kind():
    held = [point for point in SCORED if point.held_out]
    assert len(held) / len(SCORED) >= 1 / 3
    fitted = [point for point in SCORED if not point.held_out]
    assert {point.machine for point in held} - {point.machine for point in fitted} >= {"M3 Ultra", "M5 Pro", "M1 (Air)", "M2 Pro"}
    assert {point.kind for point in held} - {point.kind for point in fitted} >= {"attention", "gemv", "pointwise", "softmax"}


def test_what_is_not_scored_says_why():
    assert all(len(point.unusable) > 20 for point in points() if point.unusable)
    assert sum(bool(point.unusable) for point in points()) == 6


@pytest.mark.parametrize("name", machines())
def test_every_machine_has_the_data_file_of_a_chip(name):
    assert machine(name).chip in chips.names()


@pytest.mark.parametrize(("name", "published"), [("m1", 12e12), ("m3pro", 16.77e12), ("m4", 18.77e12), ("m5max", 20.3e12), ("m6", 20.6e12)])
def test_the_peak_of_the_clock_is_the_published_one(name, published):
    assert machine(name).peak_flops_per_s == pytest.approx(published, rel=0.07)


@pytest.mark.parametrize(("name", "meant"), [("M4 Max", "m4max"), ("Apple M1", "m1"), ("m4ultra", "m4max")])
def test_an_unknown_machine_is_an_error_that_names_the_nearest(name, meant):
    with pytest.raises(UsageError, match=f"no chip is called '{name}'.* Did you mean {meant}"):
        machine(name)


def test_a_layer_counts_its_work():
    layer = Layer("conv", 3, 64, 128, 1000, 3, 8)
    assert layer.flops == 2 * 3 * 64 * 128 * 9 * 1000
    assert layer.weight_bytes == 64 * 128 * 9
    assert Layer("softmax", 1, 1, 8, 8).flops == 0


def test_published_arithmetic_is_that_of_the_layers():
    """TFLOPS that sources print: 128 convs of 512 channels over 4,096 columns in 14.8 ms are 18.6e12."""
    (point,) = [p for p in points() if p.shape == "128x 512->512 @64x64"]
    assert sum(layer.flops for layer in point.layers) / point.ms * 1e3 == pytest.approx(18.6e12, rel=0.01)


def test_a_machine_is_a_plain_record():
    assert Machine("x", "m4", 1e9, "s").numbers_per_s == 64e9
