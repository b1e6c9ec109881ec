"""`torchane cache` shows what is there, and clears what nobody uses."""

import json

import pytest

from torchane.capture.lowered import LoweredPrograms
from torchane.cli.cache import command
from torchane.cli.planned import kept_plans
from torchane.plan import ProgramSpec
from torchane.runtime.ane.cache import CompileCache
from torchane.runtime.ane.source import Source


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHANE_CACHE", str(tmp_path))
    return CompileCache(tmp_path / "ane", "25A1")


def said(capsys, *arguments):
    command.main(list(arguments), standalone_mode=False)
    return capsys.readouterr().out


def test_an_empty_cache_is_said_to_be(cache, capsys):
    told = said(capsys)
    assert "holds no lowered program" in told
    assert "holds no compiled program" in told
    assert not cache.root.exists()


def test_programs_are_counted_by_build(cache, capsys):
    for key in "ab":
        cache.prepare(Source("program(1.3)", {}, key * 64))
    found = json.loads(said(capsys, "--json"))
    assert found["builds"]["25A1"]["programs"] == 2
    assert "build 25A1: 2 programs" in said(capsys)


def test_clearing_leaves_what_is_in_use(cache, capsys):
    used, free = (Source("program(1.3)", {}, key * 64) for key in "ab")
    for source in (used, free):
        cache.prepare(source)
    cache.release(free)
    assert "\n1 programs removed" in said(capsys, "--clear")
    assert [entry.path.name[0] for entry in cache.entries()] == ["a"]


def test_lowered_programs_are_counted_and_cleared(tmp_path, cache, capsys):
    lowered = LoweredPrograms(tmp_path / "lowered", "portable")
    lowered.put("a structure", ProgramSpec("", "program(1.3)", {}, (), (), {}, 0))
    (lowered.root / "old").mkdir()
    (lowered.root / "old" / "x.program").write_bytes(b"1234")
    found = json.loads(said(capsys, "--json"))["lowered"]
    assert found["programs"] == 2
    assert found["of_other_versions"] == 1
    assert found["bytes"] == sum(file.stat().st_size for file in lowered.root.glob("*/*"))
    assert "lowered: 2 programs, 0.0 MiB" in said(capsys)
    assert "2 lowered programs removed" in said(capsys, "--clear")
    assert not lowered.entries()


def test_plans_are_counted_and_cleared(cache, capsys):
    plans = kept_plans()
    plans.put("a" * 64, b"1234")
    assert json.loads(said(capsys, "--json"))["plans"] == {"folder": str(plans.root), "removed": 0, "plans": 1, "bytes": 4, "of_other_versions": 0}
    assert "plans: 1 plans, 0.0 MiB" in said(capsys)
    assert "1 plans removed" in said(capsys, "--clear")
    assert "holds no plan." in said(capsys)
