"""Where a run comes from."""

import subprocess

import torch

from torchane.train import provenance as module
from torchane.train.provenance import commit, package_version, provenance


def test_it_names_versions_and_machine():
    about = provenance()
    assert about["torch"] == torch.__version__ and about["cpus"] >= 1 and about["command"]
    assert about["time"].endswith("+00:00")


def test_the_commit_is_that_of_the_checkout_with_a_plus_where_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SOURCE", tmp_path)
    assert commit() is None
    (tmp_path / "src" / "torchane").mkdir(parents=True)
    (tmp_path / "src" / "torchane" / "x.py").write_text("1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert commit() == head
    (tmp_path / "src" / "torchane" / "x.py").write_text("2")
    assert commit() == head + "+"


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SOURCE", tmp_path)
    (tmp_path / "src" / "torchane").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None


def test_a_package_that_is_not_installed_has_no_version():
    assert package_version("no-such-package") is None
