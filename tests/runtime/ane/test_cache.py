"""The folders of compiled programs: private, whole or absent, limited in size, and errors that say what to do."""

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

import pytest

from torchane.errors import DeviceError
from torchane.runtime.ane.cache import CompileCache, default_root
from torchane.runtime.ane.source import Source

WEIGHTS = "@model_path/weights/weight.bin"


def source(key: str, size: int = 1000) -> Source:
    return Source("program(1.3)", {WEIGHTS: bytes(size)}, key * 64)


def test_a_program_lies_there_as_the_framework_reads_it(tmp_path):
    folder = CompileCache(tmp_path / "root", "25A1").prepare(source("a"))
    assert (folder / "model.mil").read_text() == "program(1.3)"
    assert (folder / "weights" / "weight.bin").stat().st_size == 1000


def test_nobody_else_can_read_it(tmp_path):
    cache = CompileCache(tmp_path / "root", "25A1")
    folder = cache.prepare(source("a"))
    for path in (cache.root, folder.parent, folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_every_build_of_the_system_has_its_own(tmp_path):
    one, other = (CompileCache(tmp_path, build).prepare(source("a")) for build in ("25A1", "25B2 (a/b)"))
    assert one.parent != other.parent and other.parent.parent == tmp_path


def test_what_was_used_longest_ago_goes_first_and_other_builds_before_all(tmp_path):
    old = CompileCache(tmp_path, "24Z9")
    old.prepare(source("o"))
    old.release(source("o"))
    cache = CompileCache(tmp_path, "25A1", most_bytes=2500)
    for age, key in enumerate("abc"):
        folder = cache.prepare(source(key))
        os.utime(folder, (time.time() - 1000 + age,) * 2)
        cache.release(source(key))
    cache.evict()
    assert [entry.path.name[0] for entry in cache.entries()] == ["b", "c"]


def test_what_is_in_use_stays(tmp_path):
    cache, other = (CompileCache(tmp_path, "25A1", most_bytes=0) for _ in range(2))
    cache.prepare(source("a"))
    assert other.evict() == 0 and other.clear() == 0
    cache.release(source("a"))
    assert other.clear() == 1 and other.entries() == []


def test_two_programs_of_one_key_hold_it_together(tmp_path):
    cache = CompileCache(tmp_path, "25A1")
    for _ in range(2):
        cache.prepare(source("a"))
    cache.release(source("a"))
    assert CompileCache(tmp_path, "25A1").clear() == 0


def test_a_full_disk_is_said_before_anything_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 100 << 20))
    with pytest.raises(DeviceError, match=r"100 MiB free and compiling needs .* TORCHANE_CACHE"):
        CompileCache(tmp_path, "25A1").prepare(source("a"))
    assert not list(tmp_path.rglob("model.mil"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match=r"file.*TORCHANE_CACHE"):
        CompileCache(tmp_path / "file" / "root", "25A1").prepare(source("a"))


@pytest.mark.parametrize("damage", [lambda folder: os.truncate(folder / "weights" / "weight.bin", 999), lambda folder: (folder / "weights" / "weight.bin").unlink(),
                                    lambda folder: os.truncate(folder / "model.mil", 5), lambda folder: (folder / "weights" / "weight.bin").write_bytes(bytes(999) + b"x")])  # fmt: skip
def test_files_that_are_cut_short_or_hold_something_else_are_written_anew(tmp_path, damage):
    folder = CompileCache(tmp_path, "25A1").prepare(source("a"))
    damage(folder)
    assert CompileCache(tmp_path, "25A1").prepare(source("a")) == folder
    assert (folder / "model.mil").read_text() == "program(1.3)" and (folder / "weights" / "weight.bin").read_bytes() == bytes(1000)


def test_a_half_written_folder_is_written_anew(tmp_path):
    cache = CompileCache(tmp_path, "25A1")
    folder = cache.folder(source("a").key)
    folder.mkdir(parents=True)
    (folder / "weights").mkdir()
    assert (cache.prepare(source("a")) / "model.mil").is_file()


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    """A system administrator's, or a disk that is mounted so; the superuser may write anywhere, so it is the call that fails here."""
    cache = CompileCache(tmp_path, "25A1")
    monkeypatch.setattr(tempfile, "mkdtemp", refusing(errno.EROFS))
    with pytest.raises(DeviceError, match=r"Read-only file system.*TORCHANE_CACHE"):
        cache.prepare(source("a"))


def test_a_disk_that_fills_while_a_program_is_written_leaves_nothing(tmp_path, monkeypatch):
    cache = CompileCache(tmp_path, "25A1")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", refusing(errno.ENOSPC))
        with pytest.raises(DeviceError, match=r"No space left on device.*Make room"):
            cache.prepare(source("a"))
    assert cache.entries() == [] and not list(tmp_path.glob("*/*"))
    assert (cache.prepare(source("a")) / "model.mil").is_file()


def refusing(number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_folder_that_goes_between_writing_and_locking_is_written_again(tmp_path, monkeypatch):
    cache, other = (CompileCache(tmp_path, "25A1") for _ in range(2))
    plain, times = cache._lock, iter(range(3))

    def lock(folder):
        if next(times, None) is not None:
            assert other.clear() == 1
        return plain(folder)

    monkeypatch.setattr(cache, "_lock", lock)
    folder = cache.prepare(source("a"))
    assert (folder / "model.mil").is_file() and other.clear() == 0


def test_a_lock_on_what_was_removed_is_none(tmp_path, monkeypatch):
    """The other process held its lock while it removed the folder, and this one waited for it."""
    cache, other = (CompileCache(tmp_path, "25A1") for _ in range(2))
    cache.release(source("a")) if cache.prepare(source("a")) else None
    plain, first = fcntl.flock, iter([True])

    def flock(lock, how):
        if how == fcntl.LOCK_SH and next(first, False):
            monkeypatch.setattr(fcntl, "flock", plain)
            assert other.clear() == 1
        plain(lock, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = cache.prepare(source("a"))
    assert (folder / "model.mil").is_file() and other.clear() == 0


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    cache = CompileCache(tmp_path, "25A1")
    cache.prepare(source("a"))
    new = tmp_path / "25A1" / ".new-x"
    new.mkdir()
    assert cache.clear() == 0 and new.is_dir()
    os.utime(new, (time.time() - 7200,) * 2)
    assert cache.clear() == 1 and not new.exists()


def test_the_environment_names_another_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHANE_CACHE", str(tmp_path))
    assert default_root() == tmp_path / "ane"


@pytest.mark.parametrize(("named", "meant"), [("here", Path.cwd() / "here"), ("~/there", Path.home() / "there")])
def test_it_is_the_same_place_from_every_folder(monkeypatch, tmp_path, named, meant):
    monkeypatch.setenv("TORCHANE_CACHE", named)
    assert default_root() == meant / "ane"
