"""Files that are whole or absent, under the failures that a disk has."""

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file

from torchane.errors import RunFolderError
from torchane.models.files import read_json, write_atomically, write_json, write_text


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


def test_tensor_files_may_be_read_by_whom_other_files_may(old):
    path = old.parent / "model.safetensors"
    write_atomically(path, lambda temporary: save_file({"x": torch.ones(10)}, temporary))
    assert path.stat().st_mode == old.stat().st_mode


def test_floats_survive_json_to_the_bit(tmp_path):
    values = {"loss": 0.1 + 0.2, "tiny": 5e-324}
    write_json(tmp_path / "x.json", values)
    assert read_json(tmp_path / "x.json") == values


def test_a_disk_that_is_full_leaves_the_old_file(old):
    def write(path):
        path.write_text("ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunFolderError, match="state.json could not be written: No space left.* Free some space"):
        write_atomically(old, write)
    assert old.read_text() == "old" and os.listdir(old.parent) == ["state.json"]


def test_a_tensor_file_that_cannot_grow_leaves_the_old_file(tmp_path, small_files):
    path = tmp_path / "model.safetensors"
    write_atomically(path, lambda temporary: save_file({"x": torch.ones(10)}, temporary))
    with pytest.raises(RunFolderError, match="model.safetensors could not be written: .*ulimit -f"):
        write_atomically(path, lambda temporary: save_file({"x": torch.ones(100_000)}, temporary))
    assert torch.equal(load_file(path)["x"], torch.ones(10)) and os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("moment", ["write", "sync", "os.replace"])
def test_a_process_that_is_killed_leaves_the_old_file_and_the_next_write_cleans_up(old, moment):
    script = f"""
        import os, signal
        from pathlib import Path
        from torchane.models import files
        def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
        def write(path):
            path.write_text("half")
            {"kill()" if moment == "write" else "pass"}
        {"files.sync = kill" if moment == "sync" else ""}
        {"os.replace = kill" if moment == "os.replace" else ""}
        files.write_atomically(Path({str(old)!r}), write)
    """
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, env=here)
    assert done.returncode == -signal.SIGKILL
    assert old.read_text() == "old" and (old.parent / ".partial" / "state.json").exists()
    write_text(old, "new")
    assert old.read_text() == "new" and os.listdir(old.parent) == ["state.json"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunFolderError, match="taken/x.json could not be written: Not a directory"):
        write_text(tmp_path / "taken" / "x.json", "")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"], ids=["empty", "cut", "list", "binary"])
def test_json_that_is_damaged_is_named(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunFolderError, match="run.json cannot be read"):
        read_json(tmp_path / "run.json")


def test_a_missing_file_says_which_folder_was_meant(tmp_path):
    with pytest.raises(RunFolderError, match="run.json does not exist.*folder that `torchane train` wrote"):
        read_json(tmp_path / "run.json")
