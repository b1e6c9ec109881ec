"""The loop: what it does when, that stopping and resuming changes no bit, and how it fails."""

import copy
import errno
import math
import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_run import CONFIG, GPT2, SETTINGS, RandomBatches, make_trainer

from torchane.errors import NumericsError, RunFolderError
from torchane.train.forward import HostModel


class Memory(HostModel):
    """A forward that counts its training calls and scales by it, as the engine's remembers its loss scale."""

    calls = 0

    def __call__(self, tokens):
        self.calls += torch.is_grad_enabled()
        return super().__call__(tokens) * (1 + 2.0**-20 * self.calls)

    def state(self):
        return {"calls": self.calls}

    def restore(self, state):
        self.calls = state["calls"]


def with_memory(trainer):
    trainer.compiled = Memory(trainer.model)
    return trainer


def stop_after(trainer, step):
    return lambda: trainer.state.step >= step


def numbers(lines):
    return [{key: value for key, value in line.items() if key != "time_s"} for line in lines]


def test_it_learns_and_does_everything_at_its_step(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    result = trainer.run()
    listener = trainer.reporter
    assert [report.step for report in listener.steps] == list(range(1, 11))
    assert [report.step for report in listener.validations] == [0, 4, 8, 10]
    assert [step for step, _ in listener.samples] == [0, 10]
    assert listener.saves == [5, 10]
    assert result.steps == 10 and not result.interrupted and result.floor == 0.25
    assert result.valid_loss < listener.validations[0].valid_loss - 0.5
    assert result.bits_per_byte == pytest.approx(result.valid_loss / math.log(2) * 32 / 64)
    assert result.train_loss == pytest.approx(sum(report.loss for report in listener.steps[-2:]) / 2)
    assert result.tokens_per_s > 0


def test_dropout_draws_anew_at_every_step_and_leaves_torchs_generator_alone(tmp_path):
    draws = []
    trainer = make_trainer(tmp_path / "run", replace(SETTINGS, steps=4))
    trainer.compiled = HostModel(lambda tokens: draws.append(torch.rand(2).tolist()) or trainer.model(tokens))
    before = torch.get_rng_state()
    for _ in range(4):
        trainer.step([])
    assert torch.equal(torch.get_rng_state(), before) and len({tuple(draw) for draw in draws}) == 4


def test_validation_and_samples_are_without_dropout(tmp_path):
    modes = []
    trainer = make_trainer(tmp_path / "run", replace(SETTINGS, steps=2), config=GPT2, sample=lambda model: modes.append(model.training))
    first, again = trainer.validate(), trainer.validate()
    assert first.valid_loss == again.valid_loss
    model = copy.deepcopy(trainer.model).eval()
    batches = trainer.batches.valid()
    losses = [F.cross_entropy(model(batch.tokens).flatten(0, 1), batch.targets.flatten()).item() for batch in batches]
    assert first.valid_loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    trainer.run()
    assert modes == [False, False] and trainer.model.training


@pytest.mark.parametrize("stops", [(0,), (3,), (5,), (4, 7), (9,)])
@pytest.mark.parametrize("config", [CONFIG, GPT2], ids=["llama", "gpt2 with dropout"])
def test_stopping_and_resuming_changes_no_bit(tmp_path, stops, config):
    whole, parts = (with_memory(make_trainer(tmp_path / name, config=config)) for name in ("whole", "parts"))
    want = whole.run()
    for step in stops:
        stopped = parts.run(stop_after(parts, step))
        assert stopped.interrupted and stopped.steps == step
        torch.manual_seed(sum(stops))  # a new process, whose own generator stands elsewhere
        parts = with_memory(make_trainer(tmp_path / "parts", existing=True, config=config))
        parts.resume()
    got = parts.run()
    assert replace(got, tokens_per_s=None) == replace(want, tokens_per_s=None)
    assert numbers(parts.folder.read_metrics()) == numbers(whole.folder.read_metrics())
    for name in ("model.safetensors", "training.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer = make_trainer(tmp_path / name, replace(SETTINGS, seed=seed, steps=3))
        trainer.run()
        runs[name] = (tmp_path / name / "training.safetensors").read_bytes()
    assert runs["a"] == runs["b"] != runs["c"]


def test_metrics_after_the_checkpoint_are_written_again(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.run(stop_after(trainer, 5))
    trainer.folder.append_metrics({"kind": "step", "step": 6, "loss": 1.0})
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"kind": "st')  # torn by a crash
    again = make_trainer(tmp_path / "run", existing=True)
    again.resume()
    assert max(line["step"] for line in again.folder.read_metrics()) == 5


def test_a_finished_run_resumes_to_its_result(tmp_path):
    want = make_trainer(tmp_path / "run").run()
    again = make_trainer(tmp_path / "run", existing=True)
    again.resume()
    got = again.run()
    assert got.valid_loss == want.valid_loss and got.steps == 10 and not got.interrupted


def test_a_loss_that_turns_nan_names_the_step_and_keeps_the_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    model = trainer.model
    trainer.compiled = HostModel(lambda tokens: model(tokens) * (math.nan if trainer.state.step == 7 else 1.0))
    with pytest.raises(NumericsError, match=r"step 8: the loss is nan.*checkpoint of step 5 in .*run is good"):
        trainer.run()
    again = make_trainer(tmp_path / "run", existing=True)
    again.resume()
    assert again.state.step == 5
    again.run()


def test_a_validation_that_turns_nan_is_named_before_anything_is_saved(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    model = trainer.model
    trainer.compiled = HostModel(lambda tokens: model(tokens) * (1.0 if torch.is_grad_enabled() else math.nan))
    with pytest.raises(NumericsError, match="step 0: the validation loss is nan.*Nothing was saved yet"):
        trainer.run()


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "run")
    trainer.run(stop_after(trainer, 5))
    before = (tmp_path / "run" / "training.safetensors").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="could not be written: No space left"):
        trainer.run()
    assert (tmp_path / "run" / "training.safetensors").read_bytes() == before


def test_micro_steps_are_one_batch():
    assert replace(SETTINGS, batch_size=3, grad_accum_steps=4).windows == 12
    assert replace(SETTINGS, batch_size=3, grad_accum_steps=4).tokens_per_step == 12 * 16


def test_batches_are_asked_for_by_their_step_from_zero(tmp_path):
    asked = []

    class Spy(RandomBatches):
        def train(self, step):
            asked.append(step)
            return super().train(step)

    make_trainer(tmp_path / "run", batches=Spy()).run()
    assert asked == list(range(10))
