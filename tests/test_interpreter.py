import gc
import resource
import subprocess
import sys

import pytest

from torchane.interpreter import compiling


def called() -> None:
    """A call is all it is."""


def page_faults_at(depth: int) -> int:
    """Of 1,000 calls from a frame so deep."""
    if depth:
        return page_faults_at(depth - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(1000):
        called()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def most_page_faults(depth: int = 300, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    """Frames of two sizes, so that some end close to the edge of a chunk."""
    here = max(map(page_faults_at, range(4)))
    return max(here, most_page_faults(depth - 1)) if depth else here


def test_calls_fetch_no_memory_however_deep_they_are():
    if most_page_faults() < 1000:
        pytest.skip("this Python does not fetch memory for each call at the edge of a chunk of frames")
    assert compiling(most_page_faults)() < 100


@compiling
def is_collecting() -> bool:
    return gc.isenabled()


def test_garbage_collection_is_off_within_and_as_it_was_after():
    assert gc.isenabled()
    assert not is_collecting()
    assert gc.isenabled()


def test_garbage_collection_comes_back_after_an_error():
    @compiling
    def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        fails()
    assert gc.isenabled()


def test_arguments_and_result_pass_through():
    assert compiling(divmod)(7, 2) == (3, 1)
    assert compiling(dict)(a=1) == {"a": 1}


@pytest.mark.parametrize("owned", [True, False])
def test_collections_leave_out_what_was_imported_in_a_process_of_our_own(owned):
    code = (
        "import gc; from torchane.interpreter import importing\n"
        f"with importing(owned={owned}):\n    assert not gc.isenabled(); import xml.dom.minidom\n"
        f"held = gc.get_freeze_count(); assert gc.isenabled() and bool(held) == {owned}\n"
        f"with importing(owned={owned}):\n    import xml.dom.minidom\n"
        "assert gc.get_freeze_count() <= held\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
