"""Run folders: what is in them, what is refused, what damage is found."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_run import make_trainer

from torchane.errors import RunFolderError, UsageError
from torchane.models.folder import load_model
from torchane.train.run_folder import RunFolder, check_free, free_name


@pytest.fixture
def trained(tmp_path):
    """A folder whose run stopped at step 5."""
    trainer = make_trainer(tmp_path / "run")
    trainer.run(lambda: trainer.state.step >= 5)
    return tmp_path / "run"


def resume(path):
    trainer = make_trainer(path, existing=True)
    before = [param.clone() for param in trainer.model.parameters()]
    try:
        trainer.resume()
    except RunFolderError:
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
        raise


def test_it_holds_a_model_that_loads_and_metrics_of_every_step(trained):
    assert sorted(path.name for path in trained.iterdir()) == [
        "config.json", "metrics.jsonl", "model.safetensors", "run.json", "tokenizer.json", "training.safetensors",
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


def test_names_count_up(tmp_path):
    assert free_name(tmp_path, "tiny").name == "tiny-1"
    (tmp_path / "tiny-1").mkdir()
    assert free_name(tmp_path, "tiny").name == "tiny-2"


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
    with pytest.raises(RunFolderError, match="format 99, and this torchane reads format 1"):
        RunFolder.open(trained)


def test_a_run_without_a_checkpoint_says_so(trained):
    (trained / "training.safetensors").unlink()
    with pytest.raises(RunFolderError, match="ended before its first checkpoint"):
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


def test_damaged_metrics_are_named(trained):
    (trained / "metrics.jsonl").write_text("{\nno\n")
    with pytest.raises(RunFolderError, match="metrics.jsonl cannot be read"):
        resume(trained)
