"""Outputs appear whole or not at all: what a failure leaves, whoever was writing."""

import errno

import pytest
from safetensors import SafetensorError

from torchane.convert.files import OutputError, new_file, new_folder

FULL = [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")]


@pytest.mark.parametrize("error", FULL, ids=["system", "safetensors"])
@pytest.mark.parametrize("opened", [new_folder, new_file])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, error, opened):
    with pytest.raises(OutputError, match="out/deep/it could not be written: .*No space left on device.*Free some"), opened(tmp_path / "out" / "deep" / "it") as partial:
        (partial / "a" if opened is new_folder else partial).write_text("begun")
        raise error
    assert not any(tmp_path.iterdir())


def test_folders_around_it_that_were_there_or_hold_something_stay(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "there" / "new" / "it"):
        (tmp_path / "there" / "new" / "other").write_text("")
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "there").rglob("*")] == ["new", "other"]


def test_what_was_written_has_its_name_at_the_end(tmp_path):
    with new_folder(tmp_path / "a" / "b") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
