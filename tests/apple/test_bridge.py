"""The bridge (csrc/apple) beside the stand-in: each way that a call can end, and what is left when all is done."""

import gc
from pathlib import Path

import numpy as np
import pytest
from standin import COMPILER, CONNECTION, ERROR, EXCEPTION, NIL, NO, StandIn

from torchane import native
from torchane.errors import AppleError
from torchane.mil.build import Builder
from torchane.mil.name_constants import name_constants
from torchane.mil.text import to_text

ROUTES = ("memory", "client", "e5")
PORT_BYTES = 8 * 32 * 2


def difference() -> str:
    b = Builder()
    x, y = b.input("a0_x", (1, 8, 1, 32)), b.input("a1_y", (1, 8, 1, 32))
    return to_text(name_constants(b.program(b.sub(x=x, y=y, name="z0_y"), b.add(x=x, y=y, name="z1_y"))))


class Ready:
    """A loaded program with its surfaces."""

    def __init__(self, route, folder, text=None, inputs=("a0_x", "a1_y"), outputs=("z0_y", "z1_y")):
        text = text or difference()
        (folder / "model.mil").write_text(text)
        self.program = native.apple.make(route, str(folder), text.encode(), [], list(inputs), list(outputs))
        self.inputs = [native.apple.Surface(route, PORT_BYTES) for _ in inputs]
        self.outputs = [native.apple.Surface(route, PORT_BYTES) for _ in outputs]

    def up(self):
        self.program.compile()
        self.program.load()
        self.program.bind(range(len(self.inputs)), range(len(self.outputs)), [PORT_BYTES] * len(self.outputs))
        return self

    def run(self):
        self.program.run(self.inputs, self.outputs)

    def numbers(self, surface):
        return surface.memory.view(np.float16)[:256]


@pytest.fixture(params=ROUTES)
def route(request, machine):
    native.apple.open([str(machine.path)])
    return request.param


@pytest.fixture
def ready(route, tmp_path):
    return Ready(route, tmp_path).up()


def caught(act):
    with pytest.raises(AppleError) as found:
        act()
    return found.value


def test_a_program_computes(ready):
    ready.numbers(ready.inputs[0])[:] = 3
    ready.numbers(ready.inputs[1])[:] = 1
    ready.run()
    assert (ready.numbers(ready.outputs[0]) == 2).all()
    assert (ready.numbers(ready.outputs[1]) == 4).all()


def test_a_surface_is_a_multiple_of_64_kib_and_zero(route):
    for size in (1, 65536, 65537):
        surface = native.apple.Surface(route, size)
        assert surface.capacity_bytes == -(-size // 65536) * 65536
        assert not surface.memory.any()


def test_the_host_keeps_its_lock_but_for_the_run(machine: StandIn, tmp_path):
    """The stand-in refuses surfaces that are locked."""
    native.apple.open([str(machine.path)])
    ready = Ready("memory", tmp_path).up()
    assert not any(surface.is_held for surface in (*ready.inputs, *ready.outputs))
    looked = [ready.inputs[0], ready.outputs[1]]
    for surface in looked:
        assert surface.memory.size
    ready.run()
    assert [surface.is_held for surface in (*ready.inputs, *ready.outputs)] == [True, False, False, True]


def test_a_request_is_made_once_per_set_of_surfaces(machine: StandIn, tmp_path):
    native.apple.open([str(machine.path)])
    ready = Ready("memory", tmp_path).up()
    for _ in range(5):
        ready.run()
    assert machine.events["request"] == 1
    ready.program.run(ready.inputs[::-1], ready.outputs)
    assert machine.live()["requests"] == 2


@pytest.mark.parametrize("step", ["descriptor", "model", "request", "client"])
def test_nil_is_an_error_that_names_the_call(machine: StandIn, tmp_path, step):
    native.apple.open([str(machine.path)])
    machine.fail(step, NIL, times=9)
    error = caught(lambda: Ready("client" if step == "client" else "memory", tmp_path).up().run())
    assert error.kind == "nil"
    assert "returned nil" in str(error) and error.call.startswith("+[_ANE")


@pytest.mark.parametrize("step", ["compile", "load", "unload"])
@pytest.mark.parametrize(
    ("decision", "kind", "domain", "code"),
    [
        (EXCEPTION, "exception", "NSInternalInconsistencyException", 0),
        (NO, "refused", "", 0),
        (ERROR + 10, "error", "com.apple.appleneuralengine", 10),
        (COMPILER, "error", "com.apple.appleneuralengine.compiler", 1),
        (CONNECTION, "error", "NSCocoaErrorDomain", 4097),
    ],
)
def test_each_way_to_fail_is_told_apart(machine: StandIn, tmp_path, step, decision, kind, domain, code):
    native.apple.open([str(machine.path)])
    for route in ("memory", "client"):
        machine.fail(step, decision)
        (tmp_path / route).mkdir()
        ready = Ready(route, tmp_path / route)
        error = caught(lambda: (ready.up(), ready.program.unload()))
        assert (error.kind, error.domain, error.code) == (kind, domain, code)
        assert error.text and error.call.startswith("-[_ANE")


def test_an_exception_at_a_dispatch_leaves_the_program_usable(machine: StandIn, ready):
    machine.fail("evaluate", EXCEPTION)
    assert "told to throw" in str(caught(ready.run))
    ready.run()


def test_what_reports_success_and_is_not_written_is_found(machine: StandIn, ready):
    machine.fail("evaluate", "partial")
    error = caught(ready.run)
    assert error.kind == "partial" and "z0_y" in str(error)


def test_a_status_of_espresso_comes_with_its_words(machine: StandIn, tmp_path):
    native.apple.open([str(machine.path)])
    machine.fail("compile", COMPILER)
    error = caught(Ready("e5", tmp_path).up)
    assert (error.kind, error.domain, error.code) == ("status", "e5rt", 11)
    assert "E5RT" in str(error)


@pytest.mark.parametrize("name", ["_ANEInMemoryModel", "_ANERequest", "loadWithQoS:options:error:", "objectWithIOSurface:"])
def test_a_class_or_selector_that_is_gone_is_named_before_anything_is_sent(machine: StandIn, name):
    native.apple.open([str(machine.path)])
    machine.hide(name)
    error = caught(lambda: native.apple.check_route("memory"))
    assert error.kind == "missing" and name in str(error)
    assert not machine.events


def test_a_selector_of_other_types_is_refused_with_both(machine: StandIn):
    native.apple.open([str(machine.path)])
    machine.change_encoding("loadWithQoS:options:error:", "B40@0:8Q16@24^@32")
    error = caught(lambda: native.apple.check_route("memory"))
    assert error.kind == "encoding"
    assert "B40@0:8Q16@24^@32" in str(error) and "B@:I@^@" in str(error)


def test_the_encodings_of_a_mac_are_those_that_the_bridge_expects(machine: StandIn):
    """As published for macOS 27.0, M4 and M5 Max (4rg0naut/silicon-ledger-public, tmc/apple)."""
    for name, encoding in {
        "compileWithQoS:options:error:": "B36@0:8I16@20^@28",
        "loadWithQoS:options:error:": "B36@0:8I16@20^@28",
        "evaluateWithQoS:options:request:error:": "B44@0:8I16@20@28^@36",
        "unloadWithQoS:error:": "B28@0:8I16^@20",
        "compileModel:options:qos:error:": "B44@0:8@16@24I32^@36",
        "evaluateWithModel:options:request:qos:error:": "B52@0:8@16@24@32I40^@44",
        "objectWithIOSurface:": "@24@0:8^{__IOSurface=}16",
    }.items():
        native.apple.open([str(machine.path)])
        machine.change_encoding(name, encoding)
        native.apple.check_route("memory")
        native.apple.check_route("client")


@pytest.mark.parametrize("name", ["purgeCompiledModel", "setModelURL:", "compiledModelExists", "modelAttributes"])
def test_what_can_be_done_without_is_not_sent_where_its_types_differ(machine: StandIn, tmp_path, name):
    native.apple.open([str(machine.path)])
    machine.change_encoding(name, "v24@0:8q16")
    native.apple.check_route("memory")
    b = Builder()
    x = b.input("a0_x", (1, 8, 1, 32))
    text = to_text(name_constants(b.program(b.add(x=x, y=x, name="z0_y"))))
    program = native.apple.make("memory", str(tmp_path), text.encode(), [], ["a0_x"], ["z0_y"])
    folder = Path(program.directory)
    assert (folder == tmp_path) == (name != "setModelURL:")
    folder.mkdir(exist_ok=True)
    (folder / "model.mil").write_text(text)
    assert program.is_compiled() is False
    program.purge()
    program.compile()
    program.load()
    assert program.attributes() == "" or name != "modelAttributes"
    program.unload()


def test_a_missing_function_of_espresso_is_named(machine: StandIn, tmp_path):
    """libc alone has neither a runtime nor Espresso."""
    error = caught(lambda: native.apple.open(["libc.so.6"]))
    assert error.kind == "missing" and error.call == "objc_getClass"
    native.apple.open([str(machine.path)])


def test_scalars_and_objects_of_the_machine_are_told_apart(machine: StandIn):
    native.apple.open([str(machine.path)])
    info = native.apple.device_info()
    assert info == {
        "has_engine": True, "is_virtual": False, "engines": 1, "cores": 16, "board": 0x1234, "architecture": "h16g", "build": "25A000",
    }  # fmt: skip
    native.apple.open([str(machine.path)])
    machine.change_encoding("numANECores", "@16@0:8")
    assert "encoding" in native.apple.device_info()["cores"]


def test_nothing_is_left(machine: StandIn, route, tmp_path):
    gc.collect()  # what failing tests left in their tracebacks
    before = machine.live()
    for _ in range(20):
        ready = Ready(route, tmp_path).up()
        ready.run()
        ready.program.unload()
        del ready
    after = machine.live()
    assert {key: after[key] for key in ("surfaces", "models", "requests")} == {key: before[key] for key in ("surfaces", "models", "requests")}
    assert machine.loaded == 0


def test_a_program_that_is_let_go_is_unloaded(machine: StandIn, route, tmp_path):
    ready = Ready(route, tmp_path).up()
    assert machine.loaded == 1
    del ready
    assert machine.loaded == 0


def test_a_surface_that_goes_takes_its_requests_with_it(machine: StandIn, tmp_path):
    native.apple.open([str(machine.path)])
    gc.collect()
    ready = Ready("memory", tmp_path).up()
    before = machine.live()["surfaces"]
    ready.run()
    ready.inputs[0] = native.apple.Surface("memory", PORT_BYTES)
    assert machine.live()["requests"] == 0
    assert machine.live()["surfaces"] == before


def test_a_program_may_die_while_an_exception_is_on_its_way(machine: StandIn, route, tmp_path):
    """The interpreter lets go of what a call was to be given, with its own exception set, and the bridge unloads the program then."""
    with pytest.raises(ZeroDivisionError):
        print(Ready(route, tmp_path).up().program, 1 // 0)
    gc.collect()
    assert machine.loaded == 0 and machine.events["unload"] == 1
