"""Files that are whole or absent, under the failures that a disk has."""

import errno
import os
import resource
import signal
import socket
import warnings
from pathlib import Path

import pytest

from torchane.errors import RunFolderError
from torchane.models.files import open_to_append, read_json, sync_file, write_json, write_text


@pytest.fixture
def old(tmp_path):
    """A file with content worth keeping."""
    path = tmp_path / "state.json"
    write_text(path, "old")
    return path


@pytest.fixture
def small_files():
    """The system refuses to let any file grow beyond 64 KiB, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_new_content_takes_the_place_of_the_old(old):
    write_text(old, "new\n")
    assert old.read_text() == "new\n" and os.listdir(old.parent) == ["state.json"]


def test_floats_survive_json_to_the_bit(tmp_path):
    values = {"loss": 0.1 + 0.2, "tiny": 5e-324}
    write_json(tmp_path / "x.json", values)
    assert read_json(tmp_path / "x.json") == values


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_disk_that_is_full_leaves_the_old_file(old, call, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(RunFolderError, match="state.json could not be written: No space left.* Free some space"):
        write_text(old, "new")
    monkeypatch.undo()
    assert old.read_text() == "old" and os.listdir(old.parent) == ["state.json"]


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_file_that_cannot_be_brought_to_the_disk_is_named(old, call, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(RunFolderError, match="state.json could not be written: No space left"):
        sync_file(old)


def test_a_file_that_cannot_grow_leaves_the_old_file(old, small_files):
    with pytest.raises(RunFolderError, match="state.json could not be written: .*ulimit -f"):
        write_text(old, "x" * 100_000)
    assert old.read_text() == "old" and os.listdir(old.parent) == ["state.json"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_process_that_is_killed_leaves_the_old_file_and_the_next_write_replaces_its_leftover(old, call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests leave threads, of which the child needs none
        child = os.fork()
    if child == 0:
        setattr(os, call, lambda *_: os._exit(9))
        write_text(old, "new")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert old.read_text() == "old" and (old.parent / ".state.json.partial").exists()
    write_text(old, "new")
    assert old.read_text() == "new" and os.listdir(old.parent) == ["state.json"]


@pytest.mark.parametrize("name", ["state.json", ".state.json.partial"])
@pytest.mark.parametrize("target", ["precious.txt", "precious", "absent"])
def test_a_link_in_the_place_of_a_file_is_replaced_itself(tmp_path, name, target):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years")
    (tmp_path / "precious.txt").write_text("years")
    (tmp_path / "run" / name).symlink_to(tmp_path / target)
    write_text(tmp_path / "run" / "state.json", "new")
    assert (tmp_path / "run/state.json").read_text() == "new" and not (tmp_path / "run/state.json").is_symlink()
    assert os.listdir(tmp_path / "run") == ["state.json"]
    assert (tmp_path / "precious/thesis.tex").read_text() == (tmp_path / "precious.txt").read_text() == "years"
    assert not (tmp_path / "absent").exists()


def test_a_hard_link_keeps_what_its_other_name_holds(tmp_path):
    (tmp_path / "precious").write_text("years")
    os.link(tmp_path / "precious", tmp_path / "state.json")
    write_text(tmp_path / "state.json", "new")
    with pytest.raises(ValueError, match="hard link"):
        os.link(tmp_path / "precious", tmp_path / "metrics.jsonl")
        open_to_append(tmp_path / "metrics.jsonl")
    assert (tmp_path / "precious").read_text() == "years"


def test_nothing_is_appended_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("years")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises((OSError, ValueError)):
        open_to_append(tmp_path / "metrics.jsonl")
    assert (tmp_path / "precious").read_text() == "years"


def test_a_folder_in_the_place_of_a_file_stays_with_what_it_holds(tmp_path):
    (tmp_path / ".state.json.partial").mkdir()
    (tmp_path / ".state.json.partial" / "thesis.tex").write_text("years")
    with pytest.raises(RunFolderError, match="state.json could not be written"):
        write_text(tmp_path / "state.json", "new")
    assert (tmp_path / ".state.json.partial" / "thesis.tex").read_text() == "years"


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunFolderError, match="taken/x.json could not be written: Not a directory"):
        write_text(tmp_path / "taken" / "x.json", "")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"x": NaN}', b"[" * 10_000 + b"]" * 10_000, b'{"x": ' + b"9" * 9000 + b"}"],
    ids=["empty", "cut", "list", "binary", "nan", "nested", "long number"],
)  # fmt: skip
def test_json_that_is_damaged_is_named(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunFolderError, match="run.json cannot be read"):
        read_json(tmp_path / "run.json")


@pytest.mark.parametrize(
    ("make", "message"),
    [(os.mkfifo, "a named pipe"), (os.mkdir, "a folder"), (lambda path: os.symlink("/dev/zero", path), "a device"),
     (lambda path: os.symlink(path, path), "symbolic links"), (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "a socket"),
     (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 40), "1,099,511,627,776 bytes")],
    ids=["pipe", "folder", "endless device", "link to itself", "socket", "a terabyte"],
)  # fmt: skip
def test_what_is_no_file_of_a_sensible_size_is_named_at_once(tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        make(Path("run.json"))
    with pytest.raises(RunFolderError, match=f"run.json cannot be read: .*{message}"):
        read_json(Path("run.json"))


def test_a_missing_file_says_which_folder_was_meant(tmp_path):
    with pytest.raises(RunFolderError, match="run.json does not exist.*folder that `torchane train` wrote"):
        read_json(tmp_path / "run.json")
