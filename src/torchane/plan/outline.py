"""What of a step has a price, without its programs' text: what `torchane plan` prices, draws and keeps on disk.

    outline_of(plan)  ──►  Outline   the work of each program, and the steps in order: dispatches, bytes that the host copies, its ops
    to_bytes / from_bytes            the same as a file: no program, no weights, nothing that is executed

A file is a line that says what it is, the SHA-256 of the rest, and a JSON object. What does not fit its digest, or was kept under
another key, is refused.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torchane.chips.points import Layer
from torchane.errors import ParseError
from torchane.mil.text import parse
from torchane.plan.memory import Forecast
from torchane.plan.overlap import overlapped
from torchane.plan.plan import Dispatch, HostCall, Plan, ProgramSpec, Stage, Step, Unstage
from torchane.plan.work import OpWork, ProgramWork, work_of

KINDS: Mapping[type, str] = {Stage: "stage", Dispatch: "dispatch", Unstage: "unstage", HostCall: "host"}
#: Bytes of a number in a surface.
_FP16 = 2
_MAGIC = b"torchane planned step 2\n"
_DIGEST_SIZE = 64


@dataclass(frozen=True)
class Act:
    """One step of a plan. name: for people. program: its number, of a dispatch. loaded: what tells the loaded program from others, its text and the
    frozen weights in it. size_bytes: of the surfaces that the host fills or reads. host_ops: by name, with the reason. is_beside: it goes on while the
    next dispatch runs (overlap.py)."""

    kind: str
    name: str
    program: int | None = None
    loaded: str = ""
    size_bytes: int = 0
    host_ops: tuple[tuple[str, str], ...] = ()
    is_beside: bool = False


@dataclass(frozen=True)
class Outlined:
    """One program. padding_bytes: of its surfaces, what holds no number of a value."""

    name: str
    work: ProgramWork
    padding_bytes: int


@dataclass(frozen=True)
class Outline:
    """A graph: its programs with their work, its steps in order."""

    name: str
    programs: tuple[Outlined, ...]
    acts: tuple[Act, ...]


@dataclass(frozen=True)
class PlannedStep:
    """Every graph of a training step, forward before backward, the memory of a step, and the share of its multiply-adds that programs do."""

    graphs: tuple[Outline, ...]
    memory: Forecast
    share_in_programs: float


def outline_of(plan: Plan) -> Outline:
    """Raises CompileError for a program that has no price."""
    texts = [hashlib.sha256(spec.text.encode()).hexdigest() for spec in plan.programs]
    programs = tuple(Outlined(spec.name, work_of(parse(spec.text, spec.name)), _padding_of(spec)) for spec in plan.programs)
    acts: list[Act] = []
    for turn in overlapped(plan):
        acts += [replace(_act(plan.steps[index], plan, texts), is_beside=True) for index in turn.beside]
        acts.append(_act(plan.steps[turn.step], plan, texts))
    return Outline(plan.name, programs, tuple(acts))


def _padding_of(spec: ProgramSpec) -> int:
    layouts = [port.layout for port in (*spec.inputs, *spec.outputs)]
    return sum(layout.type.size_bytes - _FP16 * math.prod(layout.logical) for layout in layouts)


def _act(step: Step, plan: Plan, texts: Sequence[str]) -> Act:
    kind, name = named(step, plan)
    if isinstance(step, Dispatch):
        loaded = hashlib.sha256("\n".join((texts[step.program], *step.constants)).encode()).hexdigest()
        return Act(kind, name, step.program, loaded)
    if isinstance(step, HostCall):
        return Act(kind, name, host_ops=step.ops)
    return Act(kind, name, size_bytes=sum(copy.layout.type.size_bytes for copy in step.copies if not copy.is_constant))


def named(step: Step, plan: Plan) -> tuple[str, str]:
    """Its kind, and a name for people."""
    kind = KINDS[type(step)]
    if isinstance(step, Dispatch):
        return kind, f"{step.where or 'main'} ({plan.programs[step.program].name})"
    if isinstance(step, HostCall):
        return kind, ", ".join(dict.fromkeys(name for name, _ in step.ops)) or step.key
    return kind, f"{kind} {len(step.copies)} values"


def to_bytes(planned: PlannedStep, key: str) -> bytes:
    """key: what it is found by; only who asks for the same is given it."""
    graphs = [[one.name, [[program.name, _work_to_json(program.work), program.padding_bytes] for program in one.programs], [_values(act) for act in one.acts]] for one in planned.graphs]
    memory = {field.name: getattr(planned.memory, field.name) for field in fields(Forecast)}
    body = json.dumps({"key": key, "graphs": graphs, "memory": memory, "share": planned.share_in_programs}).encode()
    return b"".join((_MAGIC, hashlib.sha256(body).hexdigest().encode(), b"\n", body))


def from_bytes(data: bytes, key: str) -> PlannedStep:
    """What `to_bytes` wrote under that key. Raises ParseError for anything else, with what is wrong."""
    start = len(_MAGIC) + _DIGEST_SIZE + 1
    if not data.startswith(_MAGIC) or data[start - 1 : start] != b"\n":
        raise ParseError("it does not begin as a planned step does.")
    body = data[start:]
    if hashlib.sha256(body).hexdigest().encode() != data[len(_MAGIC) : start - 1]:
        raise ParseError(f"its {len(body):,} bytes are not those that were written: their SHA-256 is another.")
    try:
        said = json.loads(body)
        if said["key"] != key:
            raise ValueError(f"it is of {said['key']}, and lies under {key}")
        graphs = tuple(
            Outline(name, tuple(Outlined(program, _work(work), padding) for program, work, padding in programs), tuple(map(_act_of, acts)))
            for name, programs, acts in said["graphs"]
        )
        _require_numbers(graphs, said["memory"], said["share"])
        return PlannedStep(graphs, Forecast(**said["memory"]), said["share"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise ParseError(f"it is no planned step ({type(error).__name__}: {error}).") from error


def _values(record: Any) -> list[Any]:
    return [getattr(record, field.name) for field in fields(record)]


def _work_to_json(work: ProgramWork) -> list[Any]:
    ops = [[op.name, op.kind, [_values(layer) for layer in op.layers], op.unseen] for op in work.ops]
    return [ops, work.bytes_in, work.bytes_out, work.fp32_surfaces]


def _work(said: Sequence[Any]) -> ProgramWork:
    ops, bytes_in, bytes_out, fp32_surfaces = said
    made = tuple(OpWork(name, kind, tuple(Layer(*layer) for layer in layers), unseen) for name, kind, layers, unseen in ops)
    return ProgramWork(made, bytes_in, bytes_out, fp32_surfaces)


def _act_of(said: Sequence[Any]) -> Act:
    kind, name, program, loaded, size_bytes, host_ops, is_beside = said
    return Act(kind, name, program, loaded, size_bytes, tuple((op, reason) for op, reason in host_ops), bool(is_beside))


def _require_numbers(graphs: Sequence[Outline], memory: Mapping[str, Any], share: Any) -> None:
    """Raises TypeError or ValueError for what would give a price of nothing."""
    numbers = [*memory.values(), *(act.size_bytes for graph in graphs for act in graph.acts)]
    for graph in graphs:
        for program in graph.programs:
            numbers += [program.work.bytes_in, program.work.bytes_out, program.padding_bytes]
            numbers += [number for layer in program.work.layers for number in (layer.count, layer.inner, layer.outer, layer.columns, layer.kernel)]
        for act in graph.acts:
            if act.kind not in KINDS.values() or (act.program is not None) != (act.kind == "dispatch"):
                raise ValueError(f"{act!r} is no step")
            if act.program is not None:
                graph.programs[act.program]
    if not all(type(number) is int and number >= 0 for number in numbers) or not 0 <= share <= 1:
        raise TypeError("its numbers are not whole, or below 0")
