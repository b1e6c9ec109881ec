"""Reads chips from their data files.

    load("m4") ── m4.toml, what it extends ──► Chip
A file groups ops that share a verdict: [[ops]] names = [..], taken = true, certainty, source, conditions = [..].
With `extends` it says only what differs: an op, a limit or a rule that it names replaces the other
file's; `strict` is not inherited. An entry without source or certainty, an unknown key and an op named twice are errors of ours, found by the
tests, which read every file.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from types import MappingProxyType

from torchane.chips.chip import Assumption, Certainty, Chip, Condition, Level, Limit, OpFact
from torchane.chips.points import machines
from torchane.errors import UsageError, nearest

#: The safe intersection, and the target of everything that names no other.
DEFAULT = "portable"
#: The source of what a machine's own probe found.
DOCTOR = "torchane doctor, on this machine"


def names() -> tuple[str, ...]:
    """The chips that have a data file, `portable` first."""
    found = sorted(file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml"))
    return (DEFAULT, *(name for name in found if name != DEFAULT))


@cache
def load(name: str = DEFAULT) -> Chip:
    """The chip of that name. Raises UsageError for a name without a data file."""
    if name not in names():
        raise UsageError(f"no chip is called {name!r}. Known: {', '.join(names())}.")
    return parse_chip(tomllib.loads((_folder() / f"{name}.toml").read_text(encoding="utf-8")))


def of_machine(name: str) -> Chip:
    """The chip of that name, or of a machine: "m4max" is the chip m4. Raises UsageError for a name that is neither."""
    known = machines()
    if name not in names() and name not in known:
        raise UsageError(f"no chip is called {name!r}{nearest(name, (*names(), *known))}. Known: {', '.join(dict.fromkeys((*names(), *known)))}.")
    return load(name if name in names() else known[name].chip)


def parse_chip(data: Mapping) -> Chip:
    """A chip from a data file's content; asserts that it is complete."""
    known = {"name", "title", "strict", "extends", "ops", "every_op", "ports", "programs", "limits", "prefers", "arithmetic"}
    assert set(data) <= known, f"{data.get('name')}: unknown keys {sorted(set(data) - known)}"
    base = load(data["extends"]) if "extends" in data else _NOTHING
    ops: dict[str, OpFact] = {}
    for group in data.get("ops", ()):
        for op_name in group["names"]:
            assert op_name not in ops, f"{data['name']}: {op_name} has two entries"
            ops[op_name] = _op_fact(op_name, group)
    return Chip(
        name=data["name"],
        title=data["title"],
        ops={**base.ops, **ops},
        every_op=_replaced(base.every_op, data.get("every_op", ())),
        ports=_replaced(base.ports, data.get("ports", ())),
        programs=_replaced(base.programs, data.get("programs", ())),
        limits={**base.limits, **{entry["name"]: _limit(entry) for entry in data.get("limits", ())}},
        prefers={**base.prefers, **data.get("prefers", {})},
        arithmetic={**base.arithmetic, **{entry["name"]: _assumption(entry) for entry in data.get("arithmetic", ())}},
        is_strict=data.get("strict", False),
    )


def probed(chip: Chip, wrong: Mapping[str, str], right: Mapping[str, str] = MappingProxyType({}), source: str = DOCTOR) -> Chip:
    """The chip as one machine showed it, whatever others report.

    wrong: op -> what was found there; those are not taken. right: op -> what was found; those are, under the conditions that they have.
    """
    bad = {
        name: OpFact(
            name, is_taken=False, certainty=Certainty.SEVERAL, source=source, why=f"on this machine it is wrong: {found}",
            do="Leave it to the host, or run torchane doctor again after an update",
        )
        for name, found in wrong.items()
        if chip.takes(name)
    }  # fmt: skip
    good = {
        name: replace(chip.op(name), is_taken=True, certainty=Certainty.ONE, source=f"{source}: {found}")
        for name, found in right.items()
        if not chip.takes(name) and not chip.is_strict
    }
    return replace(chip, ops={**chip.ops, **good, **bad}) if bad or good else chip


_NOTHING = Chip("", "", {}, (), (), (), {}, {})


def _replaced(base: tuple[Condition, ...], entries: object) -> tuple[Condition, ...]:
    """The base's conditions, without those whose rule has new ones, and the new ones."""
    new = _conditions(entries)
    rules = {condition.rule for condition in new}
    return (*(condition for condition in base if condition.rule not in rules), *new)


def _folder():
    return resources.files("torchane.chips")


def _op_fact(name: str, group: Mapping) -> OpFact:
    taken = group["taken"]
    assert taken or ("why" in group and "do" in group), f"{name} is not taken: say why and what to do"
    return OpFact(
        name=name,
        is_taken=taken,
        certainty=Certainty(group["certainty"]),
        source=group["source"],
        why=group.get("why", ""),
        do=group.get("do", ""),
        conditions=_conditions(group.get("conditions", ())),
    )


def _conditions(entries: object) -> tuple[Condition, ...]:
    return tuple(
        Condition(
            rule=entry["rule"],
            value=_frozen(entry.get("value", True)),
            level=Level(entry.get("level", "refuse")),
            certainty=Certainty(entry["certainty"]),
            source=entry["source"],
            do=entry["do"],
        )
        for entry in entries
    )


def _limit(entry: Mapping) -> Limit:
    return Limit(
        name=entry["name"],
        value=entry["value"],
        unit=entry["unit"],
        level=Level(entry.get("level", "refuse")),
        certainty=Certainty(entry["certainty"]),
        source=entry["source"],
        do=entry["do"],
    )


def _assumption(entry: Mapping) -> Assumption:
    return Assumption(entry["name"], entry["value"], Certainty(entry["certainty"]), entry["source"])


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
