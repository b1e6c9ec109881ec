"""Constants that several programs hold lie in memory once: the same bits, and nothing is kept behind the last program."""

import gc
import weakref

import numpy as np
import pytest

from torchane.mil.build import Builder
from torchane.mil.ir import Program, literal
from torchane.runtime.twin import TwinDevice, load_program, shared
from torchane.runtime.twin.shared import Constants

RNG = np.random.default_rng(0)
W = RNG.standard_normal((256, 192)).astype(np.float16)  # 96 KiB
X, DY = RNG.standard_normal((5, 192)).astype(np.float16), RNG.standard_normal((5, 256)).astype(np.float16)


def forward(weight: np.ndarray) -> Program:
    """x W^T by a 1x1 convolution, as a frozen weight has it."""
    b = Builder()
    x = b.input("x", (1, weight.shape[1], 1, 5))
    return b.program(b.conv(x=x, weight=literal(np.ascontiguousarray(weight).reshape(*weight.shape, 1, 1))))


def given(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.T).reshape(1, -1, 1, len(x))


def run(program, x: np.ndarray) -> np.ndarray:
    device = TwinDevice()
    inputs, outputs = [device.allocate(t) for t in program.inputs], [device.allocate(t) for t in program.outputs]
    inputs[0].array[...] = x
    device.run(program, inputs, outputs)
    return outputs[0].array.copy()


@pytest.fixture
def constants(monkeypatch) -> Constants:
    made = Constants()
    monkeypatch.setattr("torchane.runtime.twin.device.SHARED", made)
    return made


def arrays(constants: Constants) -> list[np.ndarray]:
    gc.collect()
    return list(constants._as_it_lies.values())


@pytest.mark.parametrize("arithmetic", ["exact", "engine"])
def test_a_weight_of_a_forward_and_of_its_backward_lies_in_memory_once(constants, arithmetic, monkeypatch):
    there, back = (load_program(forward(weight), "test", arithmetic) for weight in (W, W.T))
    assert len(arrays(constants)) == (1 if arithmetic == "exact" else 2)  # the engine's kernels read every constant as it lies
    found = run(there, given(X)), run(back, given(DY))
    monkeypatch.setattr(shared, "LEAST_BYTES", 1 << 60)
    alone = [load_program(forward(weight), "test", arithmetic) for weight in (W, W.T)]
    assert np.array_equal(found[0], run(alone[0], given(X))) and np.array_equal(found[1], run(alone[1], given(DY)))
    if arithmetic == "exact":
        wanted = X.astype(np.float64) @ W.T.astype(np.float64)
        assert np.abs(found[0][0, :, 0].T - wanted).max() < 2**-10 * np.abs(wanted).max()


def test_equal_programs_share_and_the_array_goes_with_the_last(constants):
    one, other = (load_program(forward(W), "test") for _ in range(2))
    (array,) = arrays(constants)
    gone = weakref.ref(array)
    del array, one
    gc.collect()
    assert gone() is not None and run(other, given(X)).any()
    del other
    gc.collect()
    assert gone() is None and not arrays(constants)


def test_what_differs_in_one_bit_is_not_shared(constants):
    """A zero of another sign, and a NaN of another pattern."""
    other = W.copy()
    other[0, 0], other[1, 1] = 0.0, -0.0
    minus = other.copy()
    minus[0, 0] = -0.0
    kept = [load_program(forward(weight), "test") for weight in (other, minus)]
    assert len(arrays(constants)) == len(kept)


def test_numbers_of_an_equal_checksum_are_compared(constants, monkeypatch):
    monkeypatch.setattr("torchane.native.checksums", lambda arrays: [0 for _ in arrays])
    kept = [load_program(forward(weight), "test") for weight in (W, W * np.float16(2), W.T)]
    wanted = X.astype(np.float64) @ W.T.astype(np.float64)
    assert np.abs(run(kept[0], given(X))[0, :, 0].T - wanted).max() < 2**-10 * np.abs(wanted).max()
    assert np.array_equal(run(kept[1], given(X)), 2 * run(kept[0], given(X)))


def test_a_small_constant_is_each_programs_own(constants):
    kept = load_program(forward(W[:16, :32]), "test")
    assert run(kept, given(X[:, :32])).any() and not arrays(constants)


def test_nobody_can_write_to_what_is_shared(constants):
    kept = load_program(forward(W), "test")
    with pytest.raises(ValueError, match="read-only"):
        arrays(constants)[0][...] = 0
    assert kept.stats.constant_bytes == W.nbytes
