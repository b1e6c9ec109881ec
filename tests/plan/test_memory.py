"""The forecast of a step's memory, and its refusal."""

import sys

import pytest

from torchane.abi.ports import PortLayout
from torchane.errors import DeviceError
from torchane.native import pages
from torchane.plan import Copy, Dispatch, Plan, PortSpec, ProgramSpec, Stage, Unstage
from torchane.plan.memory import RESERVE_BYTES, forecast, free_bytes, largest_batch, peak_of, require_fits, size_text

WIDE = PortLayout((1, 64, 1, 1024), (0, 1, 2, 3), (1, 64, 1, 1024), 1024)  # 128 KiB of fp16
SIZE = 64 * 1024 * 2


def make_plan(kept: bool) -> Plan:
    ports = tuple(PortSpec(name, WIDE) for name in ("x", "w")), (PortSpec("y", WIDE),)
    program = ProgramSpec("p", "", {}, *ports, {}, 0)
    chain = Dispatch(0, ("x", "w"), ("h",)), Dispatch(0, ("h", "w"), ("y",))
    stage = Stage((Copy("x", WIDE), Copy("w", WIDE, is_weight=True)))
    last = () if kept else (Unstage((Copy("y", WIDE),)),)
    return Plan("forward", ("x", "w"), ("y",), (program,), (stage, *chain, *last), kept=frozenset({0} if kept else ()))


def test_weights_gradients_and_adamw_take_sixteen_bytes_a_parameter() -> None:
    found = forecast([make_plan(False)], parameters=1000)
    assert (found.weights, found.gradients, found.optimizer) == (4000, 4000, 8000)


def test_staged_weights_are_counted_once_however_many_plans_read_them() -> None:
    assert forecast([make_plan(False), make_plan(True)], 0).staged == SIZE


def test_surfaces_in_use_at_once_are_the_peak_and_weights_are_not_among_them() -> None:
    assert peak_of(make_plan(False)) == 2 * SIZE  # x and h, then h and y


def test_what_the_forward_gives_to_the_loss_counts_three_times_in_fp32() -> None:
    assert forecast([make_plan(False)], 0).results == 3 * 2 * SIZE
    assert forecast([make_plan(True)], 0).results == 0


def test_what_is_kept_for_the_backward_counts_as_saved() -> None:
    assert forecast([make_plan(True)], 0).saved == SIZE


def test_what_cannot_fit_is_refused_with_its_numbers() -> None:
    needed = forecast([make_plan(True)], parameters=10**9)
    with pytest.raises(DeviceError, match=r"needs about 14.90 GiB .* 8.00 GiB of memory are free.*smaller batch"):
        require_fits(needed, available_bytes=8 << 30)
    with pytest.raises(DeviceError, match="Use --max-seq-length 64"):
        require_fits(needed, available_bytes=8 << 30, advice="Use --max-seq-length 64.")
    require_fits(needed, available_bytes=32 << 30)


def test_sizes_are_said_in_the_unit_that_fits_and_with_the_optimizer_that_they_are_for() -> None:
    assert [size_text(size) for size in (0, 1, 4096, 3 << 20, 5 << 30)] == ["0 KiB", "1 KiB", "4 KiB", "3.0 MiB", "5.00 GiB"]
    found = forecast([make_plan(True)], parameters=1000, optimizer_states=1, frozen_bytes=1 << 20)
    assert found.said("SGD").startswith("memory of a training step with SGD: ") and "weights 1.0 MiB, gradients 4 KiB, optimizer 4 KiB" in found.said("SGD")
    assert "constants" not in str(found)  # there are none


def test_this_machine_says_what_is_free() -> None:
    assert free_bytes() > 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="of macOS all memory is counted")
def test_what_is_fetched_ahead_for_a_step_is_free_for_it(monkeypatch):
    monkeypatch.setattr(pages, "fetched_ahead", lambda: 1 << 50)
    assert 1 << 50 < free_bytes() < 1 << 51


def test_the_largest_batch_that_fits_is_by_what_grows_with_it() -> None:
    """4 sequences keep four times SIZE for each surface; weights and the optimizer stay."""
    needed = forecast([make_plan(True)], parameters=1000)
    assert largest_batch(needed, 4, RESERVE_BYTES + needed.total) == 4
    assert largest_batch(needed, 4, RESERVE_BYTES + needed.total - 1) == 3
    assert largest_batch(needed, 4, RESERVE_BYTES) == 0
