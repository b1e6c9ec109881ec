"""Battery, heat and sleep, with commands that answer as macOS documents them."""

import os
import time
from pathlib import Path

import pytest

from torchane.runtime import wakeful


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Puts a shell script of that name first in the path."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def put(name: str, script: str) -> Path:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
        return tmp_path

    return put


def pmset(source: str = "AC Power", mode: int = 0, limit: int = 100) -> str:
    return f"""case "$*" in
"-g batt") echo "Now drawing from '{source}'"; echo " -InternalBattery-0 (id=1)	57%; discharging; 3:10 remaining";;
"-g") echo " lowpowermode         {mode}";;
"-g therm") echo "CPU_Scheduler_Limit = 100"; echo "CPU_Speed_Limit 	= {limit}";;
esac"""


def test_nothing_is_said_where_all_is_well(command):
    command("pmset", pmset())
    assert wakeful.state() == []


def test_nothing_is_said_where_there_is_no_such_command(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert wakeful.state() == []
    with wakeful.awake() as held:
        assert held is False


@pytest.mark.parametrize(
    ("answer", "said"),
    [(pmset(source="Battery Power"), "On battery, 57 % left"), (pmset(mode=1), "Low power mode"), (pmset(limit=58), "58 % of their speed")],
    ids=["battery", "low power", "heat"],
)
def test_each_state_is_said(command, answer, said):
    command("pmset", answer)
    (line,) = wakeful.state()
    assert said in line


def test_a_command_that_fails_says_nothing(command):
    command("pmset", "exit 1")
    assert wakeful.state() == []


def test_idle_sleep_is_prevented_for_the_time_of_the_block(command, monkeypatch):
    folder = command("caffeinate", 'echo "$@" > "$(dirname "$0")/asked"; exec sleep 60')
    with wakeful.awake() as held:
        assert held
        deadline = time.monotonic() + 20
        while not (folder / "asked").exists() or not (folder / "asked").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (folder / "asked").read_text().split() == ["-i", "-w", str(os.getpid())]


def test_an_error_in_the_block_ends_it_too(command):
    folder = command("caffeinate", 'echo $$ > "$(dirname "$0")/pid"; exec sleep 60')
    with pytest.raises(RuntimeError), wakeful.awake():
        while not (folder / "pid").exists() or not (folder / "pid").read_text():
            time.sleep(0.01)
        raise RuntimeError
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
