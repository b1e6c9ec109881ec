"""Spoiled binary files end in a value or in our error, within seconds and within memory: see fuzz_binaries.

The short tier runs a few thousand; the long one 400,000, of which 300,000 are model and .hwx files.
"""

import resource
import sys

import fuzz_binaries
import pytest

#: How much the largest memory of the process may grow while kilobytes are read.
MEMORY_MIB = 400


@pytest.fixture
def bounded_memory():
    def peak_mib() -> float:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)

    before = peak_mib()
    yield
    assert peak_mib() - before < MEMORY_MIB


@pytest.mark.parametrize(("kind", "count"), [("model", 1_500), ("hwx", 3_000), ("e5", 3_000)])
def test_spoiled_files(kind, count, bounded_memory):
    ends = fuzz_binaries.fuzz(kind, count, seed=1)
    assert ends["refused"] > count // 2, ends
    assert count - ends["refused"] > count // 50, ends


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 106))
def test_a_hundred_and_fifty_thousand_spoiled_models(seed, bounded_memory):
    fuzz_binaries.fuzz("model", 25_000, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 105))
def test_a_hundred_and_fifty_thousand_spoiled_engine_programs(seed, bounded_memory):
    fuzz_binaries.fuzz("hwx", 30_000, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 102))
def test_a_hundred_thousand_spoiled_descriptors(seed, bounded_memory):
    fuzz_binaries.fuzz("e5", 50_000, seed)


@pytest.mark.long
def test_spoiled_real_files(shared_data, bounded_memory):
    engine = [path.read_bytes() for path in sorted((shared_data / "hwx").iterdir())]
    assert fuzz_binaries.fuzz("hwx", 10_000, 7, engine)["tasks"] > 5_000
    package = shared_data / "mlpackage" / "mobius-silero-vad-stft-v6.0.0.mlpackage"
    model = (package / "Data" / "com.apple.CoreML" / "model.mlmodel").read_bytes()
    assert fuzz_binaries.fuzz("model", 10_000, 7, [model])["read"] > 100
