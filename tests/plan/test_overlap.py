"""Which work of the host goes on beside a dispatch: what may, what may not, and that every step has its turn."""

import random

import pytest

from torchane.abi.ports import PortLayout
from torchane.plan import Copy, Dispatch, HostCall, Plan, Stage, Unstage, overlap
from torchane.plan.overlap import Turn, moved_bytes, one_by_one, overlapped
from torchane.plan.plan import Part, surfaces_of

LAYOUT = PortLayout((2, 32), (0, 1), (1, 2, 1, 32), 32)


@pytest.fixture(autouse=True)
def _every_byte_counts(monkeypatch):
    monkeypatch.setattr(overlap, "LEAST_BYTES", 1)


def stage(*names: str) -> Stage:
    return Stage(tuple(Copy(name, LAYOUT, is_weight=name.startswith("w")) for name in names))


def unstage(*names: str) -> Unstage:
    return Unstage(tuple(Copy(name, LAYOUT) for name in names))


def dispatch(inputs: str, outputs: str) -> Dispatch:
    return Dispatch(0, tuple(inputs.split()), tuple(outputs.split()))


def host(inputs: str, outputs: str, makes_weights: bool = False) -> HostCall:
    return HostCall("call", (("aten.op", "why"),), tuple(inputs.split()), tuple(outputs.split()), makes_weights)


def plan(*steps, is_backward: bool = True, outputs: tuple[str, ...] = ()) -> Plan:
    return Plan("backward", (), outputs, (), steps, is_backward=is_backward)


def turns(*steps, **given) -> list[tuple[int, ...]]:
    return [(turn.step, *turn.beside) for turn in overlapped(plan(*steps, **given))]


LAYERS = (stage("x", "w0"), dispatch("x w0", "y g0"), unstage("g0"), stage("w1"), dispatch("y w1", "z g1"), unstage("g1"))


def test_the_next_weights_are_staged_and_the_last_gradients_leave_beside_a_dispatch():
    assert turns(*LAYERS) == [(0,), (1, 3), (4, 2), (5,)]


def test_what_leaves_a_forward_leaves_before_the_next_dispatch():
    assert turns(*LAYERS, is_backward=False) == [(0,), (1, 3), (2,), (4,), (5,)]


def test_what_is_made_of_a_result_waits_for_it():
    steps = (stage("x"), dispatch("x", "y"), unstage("y"), host("y", "t"), stage("t"), dispatch("t", "z"), unstage("z"))
    assert turns(*steps) == [(i,) for i in range(7)]


def test_a_surface_of_the_dispatch_is_not_touched():
    """Staged anew while it is read; and looked at by the host while the next dispatch reads it."""
    again = (stage("w"), dispatch("w", "y"), stage("w"), dispatch("w", "z"))
    assert turns(*again) == [(0,), (1,), (2,), (3,)]
    read = (stage("x"), dispatch("x", "y"), unstage("y"), dispatch("y", "z"), unstage("z"))
    assert turns(*read) == [(i,) for i in range(5)]


def test_the_hosts_own_ops_stay_where_they_are_but_for_weights_of_few_bits():
    steps = (stage("x"), dispatch("x", "y"), host("q", "w"), stage("w"), dispatch("y w", "z"))
    assert turns(*steps) == [(0,), (1,), (2,), (3,), (4,)]
    few_bits = (*steps[:2], host("q", "w", makes_weights=True), *steps[3:])
    assert turns(*few_bits) == [(0,), (1, 2, 3), (4,)]


def test_gradients_that_leave_keep_their_order():
    """g1 is read by the next dispatch: what leaves before it leaves before it."""
    steps = (stage("x"), dispatch("x", "g0 g1"), unstage("g0"), unstage("g1"), dispatch("g1", "y"))
    assert turns(*steps) == [(0,), (1,), (2,), (3,), (4,)]
    steps = (stage("x"), dispatch("x", "g0 g1"), unstage("g0"), unstage("g1"), dispatch("g0", "y"))
    assert turns(*steps) == [(0,), (1,), (2,), (4, 3)]


def test_a_value_in_parts_is_whole_before_somebody_reads_it():
    part = Copy("g0", LAYOUT, part=Part("g", (4, 32), 0, 0, True))
    steps = (stage("x"), dispatch("x", "g0 y"), Unstage((part,)), host("g", "h"), dispatch("y", "z"))
    assert turns(*steps) == [(i,) for i in range(5)]


def test_little_work_is_not_worth_a_thread(monkeypatch):
    size = moved_bytes(plan(*LAYERS), [3])
    assert size == LAYOUT.type.size_bytes
    monkeypatch.setattr(overlap, "LEAST_BYTES", size + 1)
    assert turns(*LAYERS) == [(i,) for i in range(6)]
    longer = (*LAYERS[:3], stage("w1", "w2"), *LAYERS[4:])
    assert turns(*longer) == [(0,), (1, 3), (2,), (4,), (5,)]


def random_plan(seed: int) -> Plan:
    """Dispatches and host work of whatever was made before, of names that are written once."""
    draw = random.Random(seed)
    surfaces, values, steps = ["s0"], ["v0"], []
    for i in range(draw.randrange(4, 24)):
        kind = draw.choice(("dispatch", "dispatch", "unstage", "stage", "host"))
        if kind == "dispatch":
            read = draw.sample(surfaces, min(len(surfaces), 2))
            steps.append(Dispatch(0, tuple(read), (f"d{i}", f"e{i}")))
            surfaces += [f"d{i}", f"e{i}"]
        elif kind == "unstage":
            one = draw.choice(surfaces)
            steps.append(unstage(one))
            values.append(one)
        elif kind == "stage":
            one = draw.choice(values)
            steps.append(stage(one))
            surfaces.append(one)
        else:
            steps.append(host(draw.choice(values), f"h{i}", draw.random() < 0.5))
            values.append(f"h{i}")
    return plan(*steps, is_backward=draw.random() < 0.8)


def touched(step) -> tuple[set[str], set[str]]:
    """What a step reads and writes: names of surfaces as they are, of host values with a mark."""
    if isinstance(step, Dispatch):
        return set(step.inputs), set(step.outputs)
    if isinstance(step, HostCall):
        return {f"host {name}" for name in step.inputs}, {f"host {name}" for name in step.outputs}
    names = [copy.value for copy in step.copies]
    marked = {f"host {name}" for name in names}
    return (marked, set(names)) if isinstance(step, Stage) else (set(names), marked)


def conflict(one, other) -> bool:
    (reads, writes), (others_reads, others_writes) = touched(one), touched(other)
    return bool(writes & (others_reads | others_writes) or others_writes & reads)


@pytest.mark.parametrize("seed", range(300))
def test_steps_that_depend_on_each_other_keep_their_order_and_never_run_at_once(seed):
    made = random_plan(seed)
    found = overlapped(made)
    order = [index for turn in found for index in (*turn.beside, turn.step)]
    assert sorted(order) == list(range(len(made.steps)))
    begun = {index: place for place, turn in enumerate(found) for index in (turn.step, *turn.beside)}
    for turn in found:
        for index in turn.beside:
            assert not set(surfaces_of(made.steps[index])) & set(surfaces_of(made.steps[turn.step]))
            assert not conflict(made.steps[index], made.steps[turn.step])
    for later in range(len(made.steps)):
        for earlier in range(later):
            if conflict(made.steps[earlier], made.steps[later]):
                same = begun[earlier] == begun[later]
                assert order.index(earlier) < order.index(later) if same else begun[earlier] < begun[later]
    for kind in (Dispatch, Unstage, Stage, HostCall):
        of_kind = [index for index in order if isinstance(made.steps[index], kind)]
        assert of_kind == sorted(of_kind)


def test_a_device_on_the_hosts_processor_takes_the_plans_order():
    assert one_by_one(plan(*LAYERS)) == tuple(Turn(i) for i in range(6))
