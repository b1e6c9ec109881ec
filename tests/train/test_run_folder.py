"""Run folders: what is in them, what is refused, what damage is found."""

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_run import make_trainer

from torchane.errors import RunFolderError, UsageError
from torchane.models.folder import load_model
from torchane.train.lock import RunLock
from torchane.train.run_folder import RunFolder, check_free, load_run_model, remove_empty, reserve


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("trained") / "run")
    trainer.run(lambda: trainer.state.step >= 5)
    return trainer.folder.path


@pytest.fixture
def trained(trained_once, tmp_path):
    """A folder whose run stopped at step 5."""
    return shutil.copytree(trained_once, tmp_path / "run")


def resume(path):
    trainer = make_trainer(path, existing=True)
    before = [param.clone() for param in trainer.model.parameters()]
    try:
        return trainer.resume()
    except RunFolderError:
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
        raise


def test_it_holds_a_model_that_loads_and_metrics_of_every_step(trained):
    assert sorted(path.name for path in trained.iterdir()) == [
        "config.json", "metrics.jsonl", "model.safetensors", "run.json", "tokenizer.json", "tokenizer_config.json", "training.safetensors",
    ]  # fmt: skip
    load_model(trained)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [0, 4]


def test_the_checkpoint_holds_the_weights_of_the_model_file(trained):
    with (
        safe_open(trained / "training.safetensors", "pt") as state,
        safe_open(trained / "model.safetensors", "pt") as model,
    ):
        for name in model.keys():  # noqa: SIM118
            assert torch.equal(state.get_tensor(f"params/{name}"), model.get_tensor(name))


def test_nothing_of_a_user_is_overwritten(trained, tmp_path):
    with pytest.raises(UsageError, match="holds a run already. Continue it with `torchane train --resume"):
        check_free(trained)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="mine is not empty"):
        check_free(tmp_path / "mine")
    check_free(tmp_path / "new")


def test_names_count_up_and_are_taken_at_once(tmp_path):
    assert [reserve(tmp_path / "runs", "tiny").name for _ in range(3)] == ["tiny-1", "tiny-2", "tiny-3"]
    remove_empty(tmp_path / "runs" / "tiny-2")
    assert reserve(tmp_path / "runs", "tiny").name == "tiny-2"


def test_a_name_cannot_be_taken_where_nothing_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="could not be written"):
        reserve(tmp_path / "file", "tiny")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file/run could not be written: Not a directory"):
        make_trainer(tmp_path / "file" / "run")


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="no run folder .*nowhere"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match="run.json does not exist"):
        RunFolder.open(tmp_path)


def test_a_run_of_another_format_is_refused(trained):
    (trained / "run.json").write_text('{"format": 99}')
    with pytest.raises(RunFolderError, match="format 99, and this torchane reads format 2"):
        RunFolder.open(trained)


def test_a_run_without_a_checkpoint_says_so(trained):
    (trained / "training.safetensors").unlink()
    with pytest.raises(RunFolderError, match="has no training.safetensors, and a run that wrote a model.safetensors had one"):
        resume(trained)


@pytest.mark.parametrize("keep", [0, 50, -1])
def test_a_cut_checkpoint_is_named(trained, keep):
    path = trained / "training.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunFolderError, match="training.safetensors cannot be read"):
        resume(trained)


def test_a_changed_byte_in_the_checkpoint_is_found(trained):
    path = trained / "training.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunFolderError, match="does not match the digest"):
        resume(trained)


def test_a_file_that_is_no_checkpoint_is_named(trained):
    save_file({"x": torch.ones(3)}, trained / "training.safetensors")
    with pytest.raises(RunFolderError, match="training.safetensors cannot be read"):
        resume(trained)


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_bytes().splitlines()]


def test_metrics_that_cannot_be_read_are_kept_beside_and_the_rest_is_put_in_order(trained):
    path = trained / "metrics.jsonl"
    whole = path.read_bytes()
    later = json.dumps({"kind": "step", "step": 6, "loss": 1.0}).encode() + b"\n"
    damaged = b"{\n\xff\xfe\n" + b"[" * 20_000 + b"\n" + b"x" * 70_000 + b"\n" + whole + later + whole + b'{"kind": "st'
    path.write_bytes(damaged)
    said = resume(trained)
    assert any("metrics.jsonl: 4 lines could not be read" in line for line in said)
    assert (trained / "metrics.damaged.jsonl").read_bytes() == damaged
    assert sorted(map(json.dumps, rows(trained))) == sorted(map(json.dumps, map(json.loads, whole.splitlines())))
    assert [row["step"] for row in rows(trained)] == sorted(row["step"] for row in rows(trained))


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    killed = make_trainer(tmp_path / "killed")
    killed.record(killed.validate())
    killed.folder.append_metrics(killed.step([]).metrics())
    again = make_trainer(tmp_path / "killed", existing=True)
    assert "no checkpoint yet: it begins anew" in again.resume()[0]
    again.run()
    for name in ("model.safetensors", "training.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert [row["step"] for row in rows(tmp_path / "killed")] == [row["step"] for row in rows(tmp_path / "whole")]


@pytest.mark.parametrize("damage", ["missing", "older", "flipped", "a folder's name taken by a pipe"])
def test_resuming_a_finished_run_renews_a_model_file_that_is_not_of_its_checkpoint(tmp_path, damage):
    trainer = make_trainer(tmp_path / "run")
    trainer.run(lambda: trainer.state.step >= 5)
    older = (tmp_path / "run/model.safetensors").read_bytes()
    trainer.run()
    path = tmp_path / "run/model.safetensors"
    good = path.read_bytes()
    path.unlink()
    if damage == "older":
        path.write_bytes(older)
    elif damage == "flipped":
        path.write_bytes(good[:-5] + bytes([good[-5] ^ 4]) + good[-4:])
    elif damage != "missing":
        os.mkfifo(path)
    model = load_run_model(tmp_path / "run") if damage in ("missing", "older") else trainer.model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trainer.model.parameters(), strict=True))
    said = resume(tmp_path / "run")
    assert path.read_bytes() == good and any("written again from the checkpoint" in line for line in said)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_weights_know_the_files_that_belong_to_them(trained, name):
    path = trained / name
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content))  # white space and order are nobody's concern
    load_run_model(trained)
    path.write_text(json.dumps({**content, "rope_theta": 10001.0}))
    with pytest.raises(RunFolderError, match=f"{name} is not the one that model.safetensors was trained with"):
        load_run_model(trained)
    with pytest.raises(RunFolderError, match=f"{name} is not the one that training.safetensors was trained with"):
        resume(trained)


def test_every_flipped_byte_of_every_file_is_found_or_harmless(trained):
    """Of each file 24 bytes over its length, headers included: an error of ours, or the very same model and state."""
    want = make_trainer(trained, existing=True)
    want.resume()
    clean = {path.name: path.read_bytes() for path in trained.iterdir()}
    for name, content in clean.items():
        for k in range(24):
            at = k if k < 12 else (k - 12) * len(content) // 12
            flipped = bytearray(content)
            flipped[at % len(content)] ^= 1 << (k % 8)
            (trained / name).write_bytes(flipped)
            try:
                model = load_run_model(trained)
                assert all(torch.equal(a, b) for a, b in zip(model.parameters(), want.model.parameters(), strict=True))
            except RunFolderError:
                pass
            try:
                got = make_trainer(trained, existing=True)
                got.resume()
                assert got.state == want.state
                assert all(torch.equal(a, b) for a, b in zip(got.model.parameters(), want.model.parameters(), strict=True))
            except (RunFolderError, UsageError):
                pass
            for other, old in clean.items():
                (trained / other).write_bytes(old)


@pytest.mark.parametrize("name", ["run.json", "config.json", "tokenizer.json", "training.safetensors", "model.safetensors", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "nested"])
def test_no_file_of_a_strangers_folder_hangs_or_fills_memory(trained, name, kind):
    (trained / name).unlink()
    if kind == "pipe":
        os.mkfifo(trained / name)
    elif kind == "folder":
        (trained / name).mkdir()
    elif kind == "device":
        (trained / name).symlink_to("/dev/zero")
    else:
        (trained / name).write_text("[" * 10_000)
    if name != "model.safetensors" and (name, kind) != ("metrics.jsonl", "nested"):  # those are mended
        with pytest.raises(RunFolderError, match=name):
            resume(trained)
    if name in ("config.json", "tokenizer.json", "model.safetensors"):
        with pytest.raises(RunFolderError, match=name):
            load_run_model(trained)


NAMES = [
    "run.json", "config.json", "tokenizer.json", "training.safetensors", "model.safetensors", "metrics.jsonl", "metrics.damaged.jsonl",
    "audit.json", "audit.svg", ".lock",
]  # fmt: skip
NAMES += [".partial", *(f".{name}.partial" for name in NAMES)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["precious", "precious/thesis.tex"])
def test_nothing_outside_of_the_folder_is_written_or_removed(trained, tmp_path, name, target):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.tex").write_bytes(b"years\n")
    path = trained / name
    if path.exists():
        content = path.read_bytes()
        path.unlink()
        (tmp_path / "precious/thesis.tex").write_bytes(content)  # so that it loads and work goes on
    before = (tmp_path / "precious/thesis.tex").read_bytes()
    path.symlink_to(tmp_path / target)
    try:
        with RunLock(trained):
            trainer = make_trainer(trained, existing=True)
            trainer.resume()
            trainer.run()
    except RunFolderError as error:
        assert name in str(error)
    assert os.listdir(tmp_path / "precious") == ["thesis.tex"]
    assert (tmp_path / "precious/thesis.tex").read_bytes() == before
