"""One process at a time, the other one named, and nothing of a stranger's touched."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from torchane.errors import RunFolderError
from torchane.train.lock import RunLock


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the lock until it is told to end."""
    script = f"""
        import sys
        from pathlib import Path
        from torchane.train.lock import RunLock
        with RunLock(Path({str(tmp_path)!r})):
            print("held", flush=True)
            sys.stdin.read()
    """
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), "a b"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=here
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path, other_process):
    with pytest.raises(RunFolderError, match=rf"is in use by process {other_process.pid} on .*'a b'"), RunLock(tmp_path):
        pass
    other_process.stdin.close()
    assert other_process.wait() == 0
    with RunLock(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_process_that_was_killed_holds_nothing(tmp_path, other_process):
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    assert os.listdir(tmp_path) == [".lock"]
    with RunLock(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("note", [b"", b"{", b"[" * 10_000, b'{"pid": "x"}', b"\xff"])
def test_a_note_that_cannot_be_read_is_another_process(tmp_path, other_process, note):
    (tmp_path / ".lock").write_bytes(note)
    with pytest.raises(RunFolderError, match="is in use by another process"), RunLock(tmp_path):
        pass


@pytest.mark.parametrize("make", [
    lambda lock, precious: lock.symlink_to(precious), lambda lock, precious: os.link(precious, lock),
    lambda lock, precious: os.mkfifo(lock), lambda lock, precious: lock.mkdir(),
], ids=["link", "hard link", "pipe", "folder"])  # fmt: skip
def test_something_else_of_that_name_is_named_and_stays(tmp_path, make):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("years")
    make(tmp_path / "run/.lock", tmp_path / "precious")
    with pytest.raises(RunFolderError, match=r"run/\.lock"), RunLock(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "years" and os.path.lexists(tmp_path / "run/.lock")


def test_a_lock_that_was_given_back_while_one_waited_is_taken_anew(tmp_path, monkeypatch):
    """Between opening and locking, the one before removes the file: the name must then lead to the file that is locked."""
    import fcntl

    flock = fcntl.flock

    def late(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        os.unlink(tmp_path / ".lock")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with RunLock(tmp_path):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(RunFolderError, match="in use"), RunLock(tmp_path):
            pass


def test_a_full_disk_is_said_and_leaves_no_lock(tmp_path, monkeypatch):
    def write(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(RunFolderError, match=r"\.lock could not be written: No space left on device"), RunLock(tmp_path):
            pass
    assert os.listdir(tmp_path) == []
    with RunLock(tmp_path):
        pass
