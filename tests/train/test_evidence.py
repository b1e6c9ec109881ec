"""The presets trained through engine programs on the twin, compared with PyTorch eager in float32: same weights, same batches."""

from dataclasses import replace

import pytest
import torch
from small_run import CommandListener, Listener

from torchane.cli.training import Request
from torchane.cli.training import train as run_command
from torchane.data.dataset import Dataset, corpus_dataset, stories_dataset
from torchane.models.llama import LlamaForCausalLM
from torchane.models.presets import preset
from torchane.train.batches import DatasetBatches
from torchane.train.engine import EngineModel
from torchane.train.forward import CompiledModel, HostModel
from torchane.train.loop import Trainer
from torchane.train.report import TrainResult
from torchane.train.run_folder import RunFolder
from torchane.train.settings import TrainSettings
from torchane.train.step import adamw

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def all_threads(one_thread):
    """These are large enough to gain from them."""
    torch.compiler.reset()
    torch.set_num_threads(2)


def settings_of(name: str, steps: int, **changes) -> TrainSettings:
    training = preset(name).training
    given = {
        "steps": steps,
        "batch_size": training.batch_size,
        "seq_len": training.seq_len,
        "lr": training.lr,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "eval_interval": steps,
        "checkpoint_interval": steps,
    }
    return TrainSettings(**{**given, **changes})


def train(
    name: str, dataset: Dataset, settings: TrainSettings, path, on_the_twin: bool
) -> tuple[TrainResult, Listener]:
    config = preset(name).config
    config = replace(config, max_position_embeddings=max(config.max_position_embeddings, settings.seq_len))
    model = LlamaForCausalLM(config, seed=0)
    compiled: CompiledModel = EngineModel(model, "twin") if on_the_twin else HostModel(model)
    folder = RunFolder.create(path / ("twin" if on_the_twin else "eager"), {}, model, dataset.tokenizer.to_text())
    listener = Listener()
    batches = DatasetBatches(dataset, settings)
    trainer = Trainer(model, compiled, adamw(model, settings), batches, settings, folder, listener, lambda model: "")
    return trainer.run(), listener


def compare(name: str, dataset: Dataset, settings: TrainSettings, path, record) -> tuple[TrainResult, TrainResult]:
    """(twin, eager) after the same steps; their losses are within 1 % of each other at every step."""
    ours, twin = train(name, dataset, settings, path, on_the_twin=True)
    theirs, eager = train(name, dataset, settings, path, on_the_twin=False)
    ratios = [a.loss / b.loss for a, b in zip(twin.steps, eager.steps, strict=True)]
    assert len(ratios) == settings.steps
    largest = max(abs(ratio - 1) for ratio in ratios)
    record("largest difference of losses", largest, unit="relative")
    record("validation loss, twin and eager", [ours.valid_loss, theirs.valid_loss], unit="nats per token")
    assert largest < 0.01
    return ours, theirs


def test_tiny_keeps_to_pytorch_for_100_steps(tmp_path, evidence):
    dataset = stories_dataset(preset("tiny").config.vocab_size)
    ours, theirs = compare("tiny", dataset, settings_of("tiny", 100), tmp_path, evidence)
    assert ours.valid_loss == pytest.approx(theirs.valid_loss, rel=0.005)


def test_stories15m_keeps_to_pytorch_for_10_steps(tmp_path, evidence):
    dataset = stories_dataset(preset("stories15m").config.vocab_size)
    settings = settings_of("stories15m", 10, eval_windows=8, warmup_steps=2)
    ours, theirs = compare("stories15m", dataset, settings, tmp_path, evidence)
    assert ours.valid_loss == pytest.approx(theirs.valid_loss, rel=0.005)


def test_stories110m_takes_a_step(tmp_path, evidence):
    dataset = stories_dataset(preset("stories110m").config.vocab_size)
    settings = settings_of("stories110m", 1, eval_windows=2, warmup_steps=0)
    ours, _ = compare("stories110m", dataset, settings, tmp_path, evidence)
    assert ours.steps == 1


def test_tiny_shakespeare_after_300_steps_has_the_bits_per_byte_of_pytorch(tmp_path, shared_data, evidence):
    dataset = corpus_dataset(shared_data / "text" / "tinyshakespeare.input.txt", preset("tiny").config.vocab_size)
    settings = settings_of("tiny", 300, eval_windows=10**6)
    ours, twin = train("tiny", dataset, settings, tmp_path, on_the_twin=True)
    theirs, eager = train("tiny", dataset, settings, tmp_path, on_the_twin=False)
    evidence("bits per byte, twin and eager", [ours.bits_per_byte, theirs.bits_per_byte])
    assert len(twin.steps) == len(eager.steps) == 300
    assert ours.bits_per_byte == pytest.approx(theirs.bits_per_byte, rel=0.01)


def test_the_default_run_ends_within_ten_percent_of_the_floor(tmp_path, evidence):
    summary = run_command(Request(out=tmp_path / "run", device="twin"), CommandListener())
    evidence("bits per byte, and the floor", [summary["bits_per_byte"], summary["floor"]])
    evidence("speed", summary["tokens_per_s"], unit="tokens/s")
    assert summary["bits_per_byte"] < 1.1 * summary["floor"]
