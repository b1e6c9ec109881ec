"""Fixtures that several test folders share."""

import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torchane import native
from torchane.train.interrupt import SIGNALS

ROOT = Path(__file__).resolve().parents[1]


#: No test reads or writes the user's own caches, and none sees what another has kept there.
_CACHES = Path(tempfile.mkdtemp(prefix="torchane-tests-"))
_numbers = itertools.count()
os.environ["TORCHANE_CACHE"] = str(_CACHES / "between")


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's caches lie; nothing is there before something is kept."""
    folder = _CACHES / str(next(_numbers))
    monkeypatch.setenv("TORCHANE_CACHE", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def nothing_traced() -> Iterator[None]:
    """What Dynamo learned in one module of tests, such as which sizes vary, is not known to the next that a worker runs."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture(params=native.isas() if native.is_built() else ["not built"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this processor has, one after the other."""
    before = native.get_isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Any number of the twin's threads."""
    before = native.get_threads()
    yield native.set_threads
    native.set_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real files that lies beside a developer's checkout; the package never needs it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data beside the checkout ({folder.name} of {folder.parent.name} is absent)")
    return folder


@pytest.fixture(scope="session")
def standin_library(tmp_path_factory) -> Path:
    """The compiled stand-in for Apple's framework (tests/apple)."""
    import standin

    try:
        return standin.build(tmp_path_factory.mktemp("standin"))
    except FileNotFoundError as why:
        pytest.skip(str(why))


@pytest.fixture
def machine(standin_library, tmp_path):
    """A machine with an engine, simulated: open its framework with `framework.opened([str(machine.path)])`."""
    import standin

    made = standin.StandIn(standin_library, tmp_path / "daemon")
    yield made
    assert not made.errors, made.errors


@pytest.fixture
def engine(machine, tmp_path):
    """The `ane` device on that machine, without its pauses."""
    from torchane.passes.respell import respell
    from torchane.runtime.ane import AneDevice, framework
    from torchane.runtime.ane.cache import CompileCache

    found = framework.opened([str(machine.path)])
    device = AneDevice(found, cache=CompileCache(tmp_path / "cache", found.build), patience=0.0)
    device.respell = respell
    yield device
    device.close()


#: Skips that CI accepts: what no Linux machine has, or what a closed one may lack.
ACCEPTED_SKIPS = (
    "needs macOS",
    "needs two gloo processes that reach each other",
    "needs a processor with two instruction sets of fused products",
    "needs zeus",
    "this processor has no instructions for products of bf16 numbers",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The time limit of pyproject.toml is for the quick tier: a long test may take as long as its evidence needs."""
    for item in items:
        if " at 0x" in item.nodeid:  # another in each process: pytest-xdist would refuse the whole run
            raise pytest.UsageError(f"{item.nodeid}: its name holds an address. Give its parameters ids that are the same in every process.")
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where TORCHANE_NO_SKIPS is set (CI), a skipped test fails unless no machine of CI's kind could run it."""
    report = yield
    if report.skipped and os.environ.get("TORCHANE_NO_SKIPS") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(accepted in reason for accepted in ACCEPTED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped, and CI requires it: {reason}"
    return report


_RECORDS: list[dict] = []


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """Signals as in a terminal, wherever the tests run, for the processes that they start too: in a job in the background of a script
    SIGINT is ignored, and under nohup SIGHUP."""
    python = {number: signal.SIG_DFL for number in SIGNALS} | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in python.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def evidence(request: pytest.FixtureRequest):
    """Keeps a measured number of a long test: evidence("largest difference", 0.004, unit="relative")."""

    def keep(what: str, value: object, unit: str = "") -> None:
        request.node.user_properties.append((what, {"value": value, "unit": unit}))

    return keep


def pytest_runtest_logreport(report) -> None:
    if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
        _RECORDS.append(
            {
                "test": report.nodeid,
                "outcome": report.outcome,
                "duration_s": round(report.duration, 2),
                "measured": dict(report.user_properties),
            }
        )


def pytest_sessionfinish() -> None:
    shutil.rmtree(_CACHES, ignore_errors=True)
    target = os.environ.get("TORCHANE_EVIDENCE")
    if target:
        Path(target).write_text(json.dumps(_RECORDS, indent=1))
