"""docs/evidence.md says what evidence/long.json holds, and README stays short."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import evidence_page


def test_the_page_is_current() -> None:
    text = evidence_page.PAGE.read_text(encoding="utf-8")
    wanted = evidence_page.page(text, json.loads(evidence_page.RECORD.read_text(encoding="utf-8")))
    assert text == wanted, "run python scripts/evidence_page.py"


def test_a_number_that_changed_changes_the_page() -> None:
    record = json.loads(evidence_page.RECORD.read_text(encoding="utf-8"))
    text = evidence_page.PAGE.read_text(encoding="utf-8")
    measured = next(test for test in record["tests"] if test["test"].endswith("test_tiny_keeps_to_pytorch_for_100_steps"))["measured"]
    next(iter(measured.values()))["value"] = 0.123456
    assert evidence_page.page(text, record) != text


def test_the_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100
