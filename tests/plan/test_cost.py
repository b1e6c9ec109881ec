"""The cost model part by part, with numbers worked out by hand."""

import pytest

from torchane.chips.points import Layer, machine
from torchane.plan.cost import (
    INPUT_WEIGHT_BYTES_PER_S,
    SLOW_FACTOR,
    Engine,
    Globals,
    is_slow_multiple,
    layer_cost,
    program_cost,
)

ENGINE = Engine(dispatch_s=1e-4, surface_bytes_per_s=10e9, weight_bytes_per_s=50e9)
SHARED = Globals(columns_half=0.0, tile_columns=64.0, cast_factor=1.5, active_w=1.0, joule_per_flop=1e-12, joule_per_weight_byte=1e-11)
M4, M5 = machine("m4"), machine("m5")
PEAK = 2 * 256 * 16 * 2.16e9


def seconds(layer, chip=M4, shared=SHARED):
    return layer_cost(layer, chip, ENGINE, shared).time_s


def test_weights_that_cores_keep_cost_arithmetic_alone():
    layer = Layer("conv", 2, 512, 512, 256)
    assert seconds(layer) == pytest.approx(2 * 2 * 512 * 512 * 256 / PEAK)
    assert layer_cost(layer, M4, ENGINE, SHARED).bound == "arithmetic"


def test_half_of_the_peak_is_reached_at_columns_half():
    half = Globals(256.0, 64.0, 1.5, 1.0, 1e-12, 1e-11)
    assert seconds(Layer("conv", 1, 512, 512, 256), shared=half) == pytest.approx(2 * seconds(Layer("conv", 1, 512, 512, 256)))


def test_larger_weights_stream():
    layer = Layer("conv", 1, 2048, 2048, 32)
    found = layer_cost(layer, M4, ENGINE, SHARED)
    assert found.bound == "weights"
    assert found.time_s == pytest.approx(2 * 2048 * 2048 / 50e9)


def test_a_matmul_reads_its_weights_once_for_every_tile_of_columns():
    once, thrice = Layer("linear", 1, 2048, 2048, 64), Layer("linear", 1, 2048, 2048, 130)
    assert layer_cost(thrice, M4, ENGINE, SHARED).weight_bytes == 3 * layer_cost(once, M4, ENGINE, SHARED).weight_bytes


@pytest.mark.parametrize(("inner", "outer", "chip", "slow"), [
    (2048, 4096, "m4", True), (2048, 4032, "m4", False), (2048, 2048, "m4", False), (4096, 4096, "m3", True), (2048, 4096, "m3max", True),
    (4096, 4096, "m5", False), (2048, 4096, "m1", False), (4608, 4608, "m4max", False), (8192, 8192, "m4max", True),
])  # fmt: skip
def test_exact_multiples_of_a_mebibyte_in_each_core_are_slow_on_m3_and_m4(inner, outer, chip, slow):
    """The pairs of LED (M4), Yoon (M3) and PR40 (M4 Max), slow and not."""
    assert is_slow_multiple(Layer("conv", 1, inner, outer, 32), machine(chip)) is slow


def test_a_slow_multiple_streams_slower_by_its_factor():
    slow, fast = seconds(Layer("conv", 1, 2048, 4096, 32)), seconds(Layer("conv", 1, 2048, 4096, 32), M5)
    assert slow == pytest.approx(SLOW_FACTOR * fast)


def test_fewer_bits_of_a_weight_are_fewer_bytes():
    assert seconds(Layer("conv", 1, 2000, 4096, 32, 1, 8)) == pytest.approx(seconds(Layer("conv", 1, 2000, 4096, 32)) / 2)


def test_int8_on_both_sides_runs_at_twice_the_rate():
    assert seconds(Layer("conv", 1, 512, 512, 4096, 1, 8, 8)) == pytest.approx(seconds(Layer("conv", 1, 512, 512, 4096, 1, 8)) / 2)


def test_a_weight_that_is_an_input_is_loaded_first():
    layer = Layer("dynamic", 1, 768, 768, 64)
    assert seconds(layer) == pytest.approx(2 * 768 * 768 * 64 / PEAK + 2 * 768 * 768 / INPUT_WEIGHT_BYTES_PER_S)


def test_a_program_is_the_sum_of_its_parts():
    layers = [Layer("conv", 1, 2048, 2048, 32), Layer("pointwise", 1, 1, 64, 32)]
    cost = program_cost(layers, 10_000_000, 20_000_000, M4, ENGINE, SHARED)
    assert cost.dispatch_s == 1e-4 and cost.surfaces_s == pytest.approx(3e-3)
    assert cost.time_s == pytest.approx(cost.dispatch_s + cost.surfaces_s + sum(layer.time_s for layer in cost.layers))
    energy = 1.0 * cost.time_s + 1e-12 * 2 * 2048 * 2048 * 32 + 1e-11 * 2 * 2048 * 2048
    assert cost.energy_j == pytest.approx(energy)


def test_the_shorter_of_products_and_element_wise_work_is_hidden():
    product, numbers = Layer("conv", 1, 512, 512, 256), Layer("pointwise", 1, 1, 512, 256)
    short, long = program_cost([product, numbers], 0, 0, M4, ENGINE, SHARED), program_cost([product] + [numbers] * 99, 0, 0, M4, ENGINE, SHARED)
    assert [layer.time_s > 0 for layer in short.layers] == [True, False]
    assert [layer.time_s > 0 for layer in long.layers] == [False] + [True] * 99
    assert max(long.layers, key=lambda layer: layer.time_s).bound == "element-wise"


def test_fp32_surfaces_take_longer_to_start():
    plain, cast = (program_cost([], 0, 0, M4, ENGINE, SHARED, fp32_surfaces=fp32).time_s for fp32 in (False, True))
    assert cast == pytest.approx(1.5 * plain)


def test_in_a_loop_surfaces_are_read_beside_the_work():
    layers = [Layer("conv", 1, 512, 512, 4096)]
    alone = program_cost(layers, 1_000_000, 0, M4, ENGINE, SHARED)
    loop = program_cost(layers, 1_000_000, 0, M4, ENGINE, SHARED, in_a_loop=True)
    assert loop.surfaces_s == 0 and loop.dispatch_s == alone.dispatch_s / 2
    large = program_cost(layers, 100_000_000, 0, M4, ENGINE, SHARED, in_a_loop=True)
    assert large.time_s == pytest.approx(large.dispatch_s + 100e6 / 50e9)


@pytest.mark.parametrize("grown", ["columns", "inner", "outer", "count"])
def test_more_work_never_costs_less(grown):
    from dataclasses import replace

    base = Layer("linear", 1, 700, 700, 100)
    for factor in (2, 3, 10):
        assert seconds(replace(base, **{grown: getattr(base, grown) * factor})) > seconds(base)
