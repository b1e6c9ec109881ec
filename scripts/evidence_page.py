"""Writes the second half of docs/evidence.md from evidence/long.json: what the last run of the long tier measured.

    python scripts/evidence_page.py

Above the mark stands what people wrote; below it every measured number by its test. Parametrized tests that measured a number of one
name are one line: how many, the least and the largest. tests/test_evidence_page.py fails where the page is not current.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, RECORD = ROOT / "docs" / "evidence.md", ROOT / "evidence" / "long.json"
MARK = "<!-- from here on written by scripts/evidence_page.py -->"
#: A test with more cases than this is one line.
MOST_CASES = 9


def page(text: str, record: Mapping[str, Any]) -> str:
    """The page whose written half is that of `text` and whose other half says what is in `record`."""
    written, mark, _ = text.partition(MARK)
    assert mark, f"{PAGE.name} has no line {MARK}"
    return written + MARK + "\n" + "\n".join(_lines(record)) + "\n"


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    outcomes, machine = record["outcomes"], record["machine"]
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())
    yield "\n## Every number that the long tier measured\n"
    yield (
        f"`{record['command']}` at commit {record['commit'][:7]} on {record['date']}: {counts}, in {record['duration_s'] / 60:.0f} minutes on "
        f"{machine['processor']}, {machine['cpus']} processors, {machine['system']}, Python {machine['python']}."
        + (" There were changes that no commit has." if record["uncommitted_changes"] else "")
    )
    yield "\n| test | measured | value |\n|---|---|---|"
    for test, numbers in _by_test(record["tests"]).items():
        yield from _rows(test, numbers)


def _by_test(tests: list[dict[str, Any]]) -> dict[str, list[tuple[str, Any, str]]]:
    """(what, value, unit) by test, its cases together."""
    found: dict[str, list[tuple[str, Any, str]]] = defaultdict(list)
    for test in tests:
        for what, measured in test["measured"].items():
            found[test["test"].partition("[")[0]].append((what, measured["value"], measured["unit"]))
    return found


def _rows(test: str, numbers: list[tuple[str, Any, str]]) -> Iterator[str]:
    if len(numbers) <= MOST_CASES:
        yield from (f"| `{test}` | {_plain(what)} | {_shown(value)} {unit} |" for what, value, unit in numbers)
        return
    values = [value for _, value, _ in numbers if isinstance(value, int | float)]
    bounds = f", from {_shown(min(values))} to {_shown(max(values))} {numbers[0][2]}" if values else ""
    yield f"| `{test}` | {len(numbers):,} numbers, e.g. {_plain(numbers[0][0])} | {len(values):,} of them{bounds} |"


def _plain(text: str) -> str:
    return text.replace("|", "\\|")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = _plain(json.dumps(value))
    return text if len(text) <= 160 else f"{text[:150]}... (the rest in {RECORD.name})"


def main() -> None:
    text = page(PAGE.read_text(encoding="utf-8"), json.loads(RECORD.read_text(encoding="utf-8")))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
