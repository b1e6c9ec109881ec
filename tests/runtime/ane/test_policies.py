"""Every error that reports quote has a meaning, and the meaning says what to do."""

import pytest

from torchane.errors import AppleError
from torchane.runtime.ane.policies import COCOA, COMPILER, FRAMEWORK, MANY_COMPILES, Remedy, meaning_of


def error(kind="error", text="", domain=FRAMEWORK, code=0):
    return AppleError(kind, "-[_ANEInMemoryModel loadWithQoS:options:error:]", text, domain, code)


@pytest.mark.parametrize("code", [1, 3, 4, 5, 6, 7, 8, 9, 10, 16, 22, 23])
def test_each_code_of_the_framework_says_why(code):
    meaning = meaning_of(error(code=code))
    assert meaning.why.endswith(".") and "has not been seen" not in meaning.why


@pytest.mark.parametrize(("code", "remedy"), [(6, Remedy.ROOM), (23, Remedy.RELOAD), (10, Remedy.REBUILD), (8, Remedy.AGAIN), (22, Remedy.NONE)])
def test_the_remedy_is_the_one_that_others_found(code, remedy):
    assert meaning_of(error(code=code)).remedy is remedy


def test_a_code_that_nobody_has_seen_asks_for_a_report():
    assert "report" in str(meaning_of(error(code=99)))


def test_the_compilers_texts_are_explained():
    for text in ("InvalidMILProgram", "InvalidCompilationParam", "CompilationFailure"):
        assert meaning_of(error(text=f"ANECCompile() FAILED err=({text})", domain=COMPILER, code=1)).remedy is Remedy.NONE
    assert "no reason" in str(meaning_of(error(text="err=()", domain=COMPILER, code=1)))


def test_many_compilations_are_named_as_a_possible_cause():
    assert "start again" in str(meaning_of(error(domain=COMPILER, code=1), MANY_COMPILES))
    assert "start again" not in str(meaning_of(error(domain=COMPILER, code=1), 3))


def test_a_service_that_ended_is_waited_for():
    assert meaning_of(error(domain=COCOA, code=4097)).remedy is Remedy.WAIT


@pytest.mark.parametrize("kind", ["missing", "encoding", "exception", "nil", "refused", "partial"])
def test_each_kind_of_failure_has_its_own_words(kind):
    assert "has not been seen" not in meaning_of(error(kind, domain="")).why
