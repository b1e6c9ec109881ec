"""What of a plan has a price, and the same from a file: the numbers of the plan, or a refusal."""

import hashlib
import json
from dataclasses import replace

import pytest

from torchane.abi.frozen import Constant
from torchane.abi.ports import PortLayout
from torchane.errors import ParseError
from torchane.mil import emit
from torchane.mil.build import Builder
from torchane.plan import Copy, Dispatch, HostCall, Plan, PortSpec, ProgramSpec, Stage, Unstage, pricing_for
from torchane.plan.memory import Forecast
from torchane.plan.outline import PlannedStep, from_bytes, outline_of, to_bytes
from torchane.plan.step import price_step

WIDE = PortLayout((1, 64, 1, 1024), (0, 1, 2, 3), (1, 64, 1, 1024), 1024)
KEY = "k" * 64


def plan(*dispatches: Dispatch, constants: tuple[Constant, ...] = ()) -> Plan:
    b = Builder()
    text, blobs = emit(b.program(b.matmul(x=b.input("x", (1, 1, 64, 64)), y=b.input("y", (1, 1, 64, 1024)))))
    spec = ProgramSpec("00_main", text, blobs, (PortSpec("x", WIDE), PortSpec("y", WIDE)), (PortSpec("z", WIDE),), {"matmul": 1}, 64 * 64 * 1024, constants=constants)
    host = HostCall("forward.host0", (("embedding", "rows are looked up"),), (), ("x",))
    staged = Stage((Copy("x", WIDE), Copy("w", WIDE, is_weight=True, is_constant=True)))
    return Plan("forward", ("x",), ("z",), (spec,), (host, staged, *dispatches, Unstage((Copy("z", WIDE), Copy("x", WIDE)))))


@pytest.fixture(scope="module")
def planned() -> PlannedStep:
    graphs = tuple(outline_of(plan(*(Dispatch(0, ("x", "y"), ("z",), f"layers.{i}") for i in range(3)))) for _ in range(2))
    return PlannedStep(graphs, Forecast(1, 2, 3, 4, 5, 6, constants=7), 0.5)


def test_a_file_gives_back_what_was_written(planned):
    assert from_bytes(to_bytes(planned, KEY), KEY) == planned


def test_a_price_counts_dispatches_bytes_and_host_ops(planned):
    price = price_step(planned.graphs, pricing_for("m4"), tokens=1)
    assert price.dispatches_per_step == 6
    assert price.bytes_staged == 2 * WIDE.type.size_bytes and price.bytes_unstaged == 4 * WIDE.type.size_bytes  # a constant is not copied
    assert price.host_ops == {"embedding": 2}
    assert price.flops == 6 * 2 * 64 * 64 * 1024


def test_what_fills_up_a_surface_is_counted():
    narrow = PortLayout((1, 64, 1, 20), (0, 1, 2, 3), (1, 64, 1, 32), 20)
    wide = plan()
    spec = replace(wide.programs[0], inputs=(PortSpec("x", narrow), PortSpec("y", WIDE)))
    (line,) = price_step([outline_of(replace(wide, programs=(spec,)))], pricing_for("m4"), tokens=1).programs
    assert line.padding_bytes == 2 * 64 * 12


def test_one_program_with_other_constants_is_loaded_again():
    constant = Constant(1, WIDE, (64, 1024), False, "fp16", "fp16")
    alike = outline_of(plan(*(Dispatch(0, ("x",), ("z",), constants=(name,)) for name in ("w", "v", "w")), constants=(constant,)))
    assert price_step([alike], pricing_for("m4"), tokens=1).loaded_programs == 2


def test_another_key_is_refused(planned):
    with pytest.raises(ParseError, match="lies under"):
        from_bytes(to_bytes(planned, KEY), "j" * 64)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:200] + b"9" + data[201:], lambda data: data + b" "])
def test_damage_is_refused(planned, damage):
    with pytest.raises(ParseError):
        from_bytes(damage(to_bytes(planned, KEY)), KEY)


def forged(planned: PlannedStep, change) -> bytes:
    """Another content, with the digest that fits it."""
    magic, _, body = to_bytes(planned, KEY).split(b"\n", 2)
    said = json.loads(body)
    change(said)
    body = json.dumps(said).encode()
    return b"\n".join((magic, hashlib.sha256(body).hexdigest().encode(), body))


@pytest.mark.parametrize("change", [
    lambda said: said["memory"].update(saved=-1),
    lambda said: said["memory"].update(unknown=1),
    lambda said: said["memory"].pop("saved"),
    lambda said: said.update(share=2.0),
    lambda said: said["graphs"][0][2][2].__setitem__(2, 1),  # a program that is not there
    lambda said: said["graphs"][0][2][2].__setitem__(0, "jump"),
    lambda said: said["graphs"][0][2][1].__setitem__(4, "many"),
    lambda said: said["graphs"][0][1][0][1].__setitem__(1, -5),
    lambda said: said.pop("graphs"),
])  # fmt: skip
def test_what_is_no_planned_step_is_refused_though_its_digest_fits(planned, change):
    with pytest.raises(ParseError, match="it is no planned step"):
        from_bytes(forged(planned, change), KEY)


def test_every_number_of_a_work_is_kept(planned):
    """A field that the file left out would come back as its default."""
    one = planned.graphs[0].programs[0]
    layer = replace(one.work.layers[0], kernel=3, weight_bits=4.25, activation_bits=8, count=7)
    odd = replace(one.work, ops=(replace(one.work.ops[0], layers=(layer,), unseen="never measured"),), fp32_surfaces=True)
    graph = replace(planned.graphs[0], programs=(replace(one, work=odd, padding_bytes=11),))
    assert from_bytes(to_bytes(replace(planned, graphs=(graph,)), KEY), KEY).graphs == (graph,)
