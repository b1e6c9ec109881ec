"""docs/faults.md is of the present table of faults and of the present policies."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def script():
    spec = importlib.util.spec_from_file_location("faults_table", ROOT / "scripts" / "faults_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_faults_is_up_to_date() -> None:
    table = script()
    assert table.is_current(table.TARGET.read_text(encoding="utf-8")), "run: python scripts/faults_table.py"


def test_a_fault_without_a_result_is_not_up_to_date() -> None:
    table = script()
    text = table.TARGET.read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| halves "))
    emptied = line.rsplit("|", 3)[0] + "| - | - |"
    assert not table.is_current(text.replace(line, emptied))
    assert not table.is_current(text.replace(line + "\n", ""))
