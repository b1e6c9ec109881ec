"""Lowered programs on disk: found again by the same structure alone, private, bounded, and never trusted when damaged."""

import os
import random
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from capture_helpers import compile_for_twin
from torch import nn

from torchane import passes
from torchane.capture import backend, lowered
from torchane.capture.lowered import LoweredPrograms, default_root
from torchane.errors import TorchaneWarning
from torchane.plan import ProgramSpec
from torchane.runtime import kept_files


def spec(text: str = "program(1.3)") -> ProgramSpec:
    return ProgramSpec("", text, {}, (), (), {}, 0)


def large(size: int, seed: str = "") -> ProgramSpec:
    """A program that takes about so many bytes on disk: noise, which does not grow smaller."""
    return ProgramSpec("", "", {"weights": random.Random(seed).randbytes(size)}, (), (), {}, 0)


def step() -> tuple[list[torch.Tensor], float]:
    """One training step of a small network: gradients, and the seconds spent on lowering."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    compile_for_twin(model)(torch.randn(4, 16)).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()], backend.COMPILED[-1].times_s["lower"]


def test_what_was_lowered_is_not_lowered_again(monkeypatch) -> None:
    first, _ = step()
    monkeypatch.setattr(passes, "lower", None)  # calling it would fail
    second, _ = step()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_structure_is_lowered(monkeypatch) -> None:
    step()
    monkeypatch.setattr(passes, "lower", None)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="not callable"):
        compile_for_twin(nn.Linear(16, 48))(torch.randn(4, 16))


def test_chip_ranges_and_version_have_programs_of_their_own(tmp_path: Path, monkeypatch) -> None:
    LoweredPrograms(tmp_path, "portable").put("s", spec())
    assert LoweredPrograms(tmp_path, "portable").get("s") == spec()
    assert LoweredPrograms(tmp_path, "m4").get("s") is None
    assert LoweredPrograms(tmp_path, "portable", ranges=True).get("s") is None
    monkeypatch.setattr(kept_files, "version", lambda: "another")
    assert LoweredPrograms(tmp_path, "portable").get("s") is None


def test_the_version_knows_the_files_that_lower() -> None:
    root = Path(lowered.__file__).parents[1]
    wanted = {"capture/region.py", "passes/__init__.py", "chips/portable.toml", "abi/ports.py", "mil/ops/constant.py"}
    assert wanted <= {str(path.relative_to(root)) for path in kept_files._sources()}


def test_the_version_follows_every_source_file(tmp_path: Path, monkeypatch) -> None:
    source = tmp_path / "rule.py"
    monkeypatch.setattr(kept_files, "_sources", lambda: [source])
    versions = set()
    for text in ("x = 1\n", "x = 2\n"):
        source.write_text(text)
        kept_files.version.cache_clear()
        versions.add(kept_files.version())
    kept_files.version.cache_clear()
    assert len(versions) == 2


def test_off_keeps_nothing() -> None:
    torch._dynamo.reset()
    compile_for_twin(nn.Linear(16, 32), cache="off")(torch.randn(4, 16))
    assert not default_root().exists()


def test_folder_and_files_are_the_users_alone(cache_folder: Path) -> None:
    step()
    root = default_root()
    assert root == cache_folder / "lowered"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (root, *root.iterdir())}
    assert modes == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in root.glob("*/*")} == {0o600}


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:100] + b"\x00" + data[101:]])
def test_a_damaged_file_is_said_removed_and_lowered_anew(damage) -> None:
    first, _ = step()
    files = sorted(default_root().glob("*/*.program"))
    files[0].write_bytes(damage(files[0].read_bytes()))
    with pytest.warns(TorchaneWarning, match=f"{files[0].name} cannot be used: .*was removed"):
        second, _ = step()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with_file_again = sorted(default_root().glob("*/*.program"))
    assert with_file_again == files
    step()  # and nothing is said of it: warnings are errors here


def test_a_link_to_another_file_is_not_followed(tmp_path: Path) -> None:
    store = LoweredPrograms(tmp_path, "portable")
    store.put("s", spec())
    (file,) = tmp_path.glob("*/*")
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(TorchaneWarning, match="could not be read"):
        assert store.get("s") is None


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    store = LoweredPrograms(tmp_path, "portable", most_bytes=40_000)
    for i in range(8):
        store.put(str(i), large(4_500))
        for path in tmp_path.glob("*/*"):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
    assert store.get("0") is not None  # used now
    store.put("8", large(4_500))
    assert sum(entry.size_bytes for entry in store.entries()) <= 40_000
    assert store.get("0") is not None
    assert store.get("1") is None
    assert store.get("8") is not None


def test_other_versions_go_before_what_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x.program").write_bytes(b"x" * 30_000)
    store = LoweredPrograms(tmp_path, "portable", most_bytes=40_000)
    for i in range(3):
        store.put(str(i), large(4_500))
    assert not (tmp_path / "old" / "x.program").exists()
    assert all(store.get(str(i)) is not None for i in range(3))


def test_a_program_that_would_drive_out_the_others_is_not_kept(tmp_path: Path) -> None:
    store = LoweredPrograms(tmp_path, "portable", most_bytes=40_000)
    store.put("s", large(6_000))
    assert not store.entries()


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "lowered").write_text("a file is in the way")
    store = LoweredPrograms(tmp_path / "lowered", "portable")
    with pytest.warns(TorchaneWarning, match="could not be (read|written).*TORCHANE_CACHE") as said:
        assert store.get("s") is None
        store.put("s", spec())
        store.put("t", spec())
    assert len(said) == 1


def test_writers_and_readers_beside_each_other_see_whole_programs_or_none(tmp_path: Path) -> None:
    programs = {str(i): large(2_000, str(i)) for i in range(20)}
    wrong: list[str] = []

    def work() -> None:
        store = LoweredPrograms(tmp_path, "portable", most_bytes=200_000)
        for _ in range(10):
            for structure, program in programs.items():
                store.put(structure, program)
                found = store.get(structure)
                if found is not None and found != program:
                    wrong.append(structure)
            store.clear()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


PROCESS = """
import sys, torch
from torch import nn
from torchane import passes
if sys.argv[1] == "second":
    passes.lower = None
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
torch.compile(model, backend="ane", options={"device": "twin"})(torch.randn(4, 16)).square().mean().backward()
print(float(model[0].weight.grad.sum()))
"""


@pytest.mark.long
def test_a_second_process_lowers_nothing() -> None:
    said = [
        subprocess.run([sys.executable, "-c", PROCESS, which], capture_output=True, text=True, check=True).stdout
        for which in ("first", "second")
    ]
    assert said[0] == said[1]
