"""docs/first-contact.md, followed to the letter on a Linux machine whose engine is the stand-in (mac/sitecustomize.py)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_training import losses

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "first-contact.md").read_text(encoding="utf-8")
COMMANDS = [line.partition(" #")[0].strip() for line in PAGE.split("```")[1].splitlines() if line.startswith((".venv", "sudo"))]
OUTCOMES = [cells.split("|")[1] for cells in PAGE.splitlines() if re.match(r"\| \d: ", cells)]
SOURCES = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src" / "torchane").rglob("*.py"))


def test_there_are_commands_and_outcomes():
    assert len(COMMANDS) == 5 and len(OUTCOMES) > 10


@pytest.mark.parametrize("outcome", [outcome for outcome in OUTCOMES if "`" in outcome])
def test_what_the_page_says_that_is_seen_is_what_the_code_says(outcome):
    """Words that a value follows end where it does; a message is written over several lines of code."""
    flat = re.sub(r'"\s*\n\s*f?"', "", SOURCES)
    for said in re.findall(r"`([^`]+)`", outcome):
        for part in filter(None, (part.strip() for part in said.split("..."))):
            words = {"route memory": "route", "arithmetic": "arithmetic ", "The engine hung (restart": "The engine hung (restart"}.get(part, part)
            assert words in flat, f"nothing says {words!r}"


@pytest.fixture
def person(tmp_path, standin_library):
    """Who types a line of the page in a checkout; what is printed. sudo has no right to anything here."""
    for name, script in {".venv/bin/torchane": f'exec {sys.executable} -m torchane "$@"', "bin/sudo": "exit 1"}.items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"#!/bin/sh\n{script}\n")
        target.chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).with_name("mac")),
        "STANDIN": f"{standin_library} {tmp_path / 'daemon'} exact", "TORCHANE_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip

    def types(line: str, fault: str = "") -> str:
        struck = {"STANDIN": f"{environment['STANDIN']} {fault}"}
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env={**environment, **struck}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return types


def test_the_first_line_finds_the_engine(person, tmp_path):
    said = person(COMMANDS[0])
    assert "route memory" in said and len(re.findall(r"^  op \w+ +right", said, re.MULTILINE)) == 3
    assert json.loads((tmp_path / "torchane-doctor.json").read_text())["missing"] == ""


def test_an_engine_that_computes_wrong_is_told_by_the_first_line(person):
    assert "did not pass three small programs" in person(COMMANDS[0], fault="evaluate:half:0:1000")


@pytest.mark.long
def test_all_of_it_prints_what_the_page_says(person, tmp_path, evidence):
    quick, full, on_engine, on_twin, speed = COMMANDS
    person(quick)
    assert "--device auto takes the engine from now on" in person(full)
    for line in (on_engine, on_twin):
        assert "Trained 20 steps" in person(line)
    engine, twin = losses(tmp_path / "runs" / "first-contact"), losses(tmp_path / "runs" / "twin")
    gap = max(abs(loss - twin[step]) / twin[step] for step, loss in engine.items())
    evidence("first contact: largest gap of a step's loss", gap)
    assert gap < 0.01 and len(engine) == 20
    smaller = {"layer --device ane": "--shape 128,64 --repeats 2", "peak --device ane": "--sizes 128,256 --repeats 2"}  # what is in the engine's place is NumPy
    for words, less in smaller.items():
        assert words in speed
        speed = speed.replace(words, f"{words} {less}")
    said = person(speed)
    assert "bench layer 128,64 on ane" in said and "bench peak 128,256 on ane" in said
    assert "watts n/a: " in said and "published (not here)" in said and "share of peak n/a: " in said
