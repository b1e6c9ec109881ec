"""Reads chips from their data files.

    load("m4") ── m4.toml ──► Chip
A file groups ops that share a verdict: [[ops]] names = [..], taken = true, certainty, source, conditions = [..].
An entry without source or certainty, an unknown key and an op named twice are errors of ours, found by the
tests, which read every file.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

from torchane.chips.chip import Certainty, Chip, Condition, Level, Limit, OpFact, Quantity
from torchane.errors import UsageError

#: The safe intersection, and the target of everything that names no other.
DEFAULT = "portable"


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


def parse_chip(data: Mapping) -> Chip:
    """A chip from a data file's content; asserts that it is complete."""
    known = {"name", "title", "ops", "every_op", "ports", "programs", "limits", "prefers", "costs"}
    assert set(data) <= known, f"{data.get('name')}: unknown keys {sorted(set(data) - known)}"
    ops: dict[str, OpFact] = {}
    for group in data["ops"]:
        for op_name in group["names"]:
            assert op_name not in ops, f"{data['name']}: {op_name} has two entries"
            ops[op_name] = _op_fact(op_name, group)
    return Chip(
        name=data["name"],
        title=data["title"],
        ops=ops,
        every_op=_conditions(data.get("every_op", ())),
        ports=_conditions(data.get("ports", ())),
        programs=_conditions(data.get("programs", ())),
        limits={entry["name"]: _limit(entry) for entry in data.get("limits", ())},
        prefers=dict(data.get("prefers", {})),
        costs={
            entry["name"]: Quantity(entry["name"], float(entry["value"]), Certainty(entry["certainty"]), entry["source"])
            for entry in data.get("costs", ())
        },
    )


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


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
