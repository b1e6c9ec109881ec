"""Two reports of doctor side by side: torchane doctor --compare OTHER.json

    who        chip, system, build, route, versions                        times      both, and how many times as long here
    verdicts   right here, wrong there: the ops, forms and doubts           values     whatever else was found otherwise
    absent     checks that only one of them has: a short look, another version of the checks

A verdict that differs and a time are told apart from what differs between any two looks: shares and distances.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torchane.runtime.ane.doctor.report import Report

#: Of times: what is compared, and left out below, since it differs between any two looks.
MEDIAN, SPREAD, RATE = "median us", "10th to 90th percentile us", "TFLOPS"
#: Times that are so near each other are the same.
SAME_WITHIN = 0.1


@dataclass(frozen=True)
class Difference:
    """check: its name, or what of the machines. key: what of the finding. here and there: as found, "-" where it was not. ratio: of two
    times, here / there."""

    group: str
    check: str
    key: str
    here: Any
    there: Any
    ratio: float | None = None

    def __str__(self) -> str:
        if self.group == "checks":
            return f"{self.check}: {self.here or self.there}"
        values = f"{_told(self.here)} here, {_told(self.there)} there"
        times = "" if self.ratio is None else f": {self.ratio:.2f} times as long here" if abs(self.ratio - 1) > SAME_WITHIN else ": about the same"
        return f"{f'{self.check}  {self.key}'.strip()}: {values}{times}"


def compared(one: Report, other: Report) -> list[Difference]:
    """Where this machine's report and another's differ; times always. In the order of the groups above."""
    return [*_who(one, other), *_verdicts(one, other), *_times(one, other), *_values(one, other), *_absent(one, other)]


def to_text(found: list[Difference]) -> str:
    """Lines by group."""
    lines: list[str] = []
    for group in dict.fromkeys(one.group for one in found):
        lines += [f"{group}:", *(f"  {one}" for one in found if one.group == group)]
    return "\n".join(lines) or "Both reports say the same."


def _told(value: Any) -> str:
    return str(value) if value not in ("", None) else "none"


def _who(one: Report, other: Report) -> Iterator[Difference]:
    def facts(report: Report) -> dict[str, Any]:
        said = {key: report.machine.get(key, "-") for key in ("chip", "model", "system", "release", "memory_gib", "torch", "torchane")}
        return {**said, "build": report.build, "route": report.route, "no engine": report.missing, "look": "quick" if report.quick else "full"}

    mine, theirs = facts(one), facts(other)
    yield from (Difference("machines", key, "", mine[key], theirs[key]) for key in mine if mine[key] != theirs[key])


def _both(one: Report, other: Report) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Checks that both have looked at, in the order of the first."""
    for name, found in one.findings.items():
        there = other.findings.get(name)
        if there is not None and "left out" not in found and "left out" not in there:
            yield name, found, there


def _verdict(found: dict[str, Any]) -> str:
    for end in ("crashed", "hung"):
        if end in found:
            return f"it {end}"
    if found.get("ok") is False:
        return f"refused ({found['error']})" if "error" in found else f"wrong ({found.get('steps from engine', '?')} steps of fp16 off)"
    return "right" if found.get("ok") is True else ""


def _verdicts(one: Report, other: Report) -> Iterator[Difference]:
    for name, found, there in _both(one, other):
        mine, theirs = _verdict(found), _verdict(there)
        if mine != theirs:
            yield Difference("verdicts", name, "", mine, theirs)


def _times(one: Report, other: Report) -> Iterator[Difference]:
    for name, found, there in _both(one, other):
        mine, theirs = found.get(MEDIAN), there.get(MEDIAN)
        if _is_time(mine) and _is_time(theirs):
            yield Difference("times", name, "us", mine, theirs, mine / theirs)  # type: ignore[operator]


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _values(one: Report, other: Report) -> Iterator[Difference]:
    told = {"ok", "error", "crashed", "hung", "last words", MEDIAN, SPREAD, RATE}
    for name, found, there in _both(one, other):
        if _verdict(found) == _verdict(there):  # else the verdict says it
            for key in [*found, *(key for key in there if key not in found)]:
                if key not in told and found.get(key) != there.get(key):
                    yield Difference("values", name, key, found.get(key, "-"), there.get(key, "-"))


def _absent(one: Report, other: Report) -> Iterator[Difference]:
    def looked(report: Report) -> list[str]:
        return [name for name, found in report.findings.items() if "left out" not in found]

    mine, theirs = looked(one), looked(other)
    for where, names, others in (("only here", mine, theirs), ("only there", theirs, mine)):
        only = [name for name in names if name not in others]
        if only:
            yield Difference("checks", where, "", *((", ".join(only), "") if names is mine else ("", ", ".join(only))))
