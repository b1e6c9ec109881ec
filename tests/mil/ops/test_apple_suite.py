"""coremltools' own op tests, run on our op table: see second_opinion.py.

Each test here is one class of theirs. The normal run takes two cases of each of its functions (picked by name,
always the same), the long run all, some ten thousand.
"""

import pytest
from second_opinion import run_theirs, their_tests

# Functions in which some case and we disagree, each with the reason why we keep what we do.
EXCEPTIONS = {
    "TestElementwiseBinary::test_real_div_int_builder_to_backend": (
        "for the old neural network format it expects fractions of integers; MIL programs truncate, and so do we"
    ),
    "TestNormalizationLocalResponseNorm::test_builder_to_backend_smoke": (
        "its values for three channels count the entry alone; its stress test agrees with PyTorch, and so do we"
    ),
    "TestCropResize::test_builder_to_backend_smoke": (
        "its box lies outside the image, for which its runtime gives the whole image and ours the pad value"
    ),
    "TestFill::test_builder_to_backend_symbolic": "it asks for a result of unknown rank",
    "TestReshape::test_builder_to_backend_symbolic": "it asks for a result of unknown rank",
    "TestScatter::test_ios17_invalid_indices": (
        "it wants a RuntimeError of Core ML's, where ours is a CompileError, or another wrong result than ours"
    ),
    "TestScatterAlongAxis::test_ios17_invalid_indices": "as TestScatter",
    "TestScatterNd::test_ios17_invalid_indices": "as TestScatter",
}


@pytest.mark.parametrize("name", their_tests())
def test_sampled_cases_agree(name: str):
    _compared, failures = _outcomes(name, sample=2)
    assert not failures, "\n".join(failures)


@pytest.mark.long
@pytest.mark.parametrize("name", their_tests())
def test_all_cases_agree(name: str, evidence):
    compared, failures = _outcomes(name, sample=None)
    evidence("cases compared", compared)
    assert not failures, "\n".join(failures)


def _outcomes(name: str, sample: int | None) -> tuple[int, list[str]]:
    outcomes = run_theirs(their_tests()[name], sample)
    keys = {function: f"{name.split('/')[-1]}::{function}" for function in outcomes}
    failures = [
        f"{keys[function]}: {text}"
        for function, outcome in outcomes.items()
        if keys[function] not in EXCEPTIONS
        for text in outcome.failures
    ]
    return sum(outcome.compared for outcome in outcomes.values()), failures
