"""A run small enough to train in a test: random tokens, a two-layer model, PyTorch eager."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from torchane.data.batches import Batch
from torchane.models.build import build_model
from torchane.models.config import Config, GPT2Config, LlamaConfig
from torchane.train.forward import HostModel
from torchane.train.loop import Trainer
from torchane.train.report import StepReport, ValidationReport
from torchane.train.run_folder import RunFolder
from torchane.train.settings import TrainSettings
from torchane.train.step import adamw

CONFIG = LlamaConfig(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=16)  # fmt: skip
#: One that draws: masks of dropout.
GPT2 = GPT2Config(vocab_size=96, n_positions=16, n_embd=64, n_layer=2, n_head=4, attn_pdrop=0.2)
SETTINGS = TrainSettings(steps=10, batch_size=2, seq_len=16, lr=1e-2, warmup_steps=2, eval_interval=4,
                         checkpoint_interval=5)  # fmt: skip


class RandomBatches:
    """Runs of counting modulo 96: easy to learn, different at every step."""

    floor = 0.25

    def _batch(self, seed: int) -> Batch:
        starts = torch.randint(0, 96, (2, 1), generator=torch.Generator().manual_seed(seed))
        text = (starts + torch.arange(17)) % 96
        return Batch(text[:, :-1], text[:, 1:], target_count=32, target_bytes=64)

    def train(self, step: int) -> Batch:
        return self._batch(step)

    def valid(self) -> list[Batch]:
        return [self._batch(1000), self._batch(1001)]


@dataclass
class Listener:
    """Keeps what the loop reports."""

    steps: list[StepReport] = field(default_factory=list)
    validations: list[ValidationReport] = field(default_factory=list)
    samples: list[tuple[int, str]] = field(default_factory=list)
    saves: list[int] = field(default_factory=list)

    def compiling(self) -> None:
        pass

    def step(self, report: StepReport) -> None:
        self.steps.append(report)

    def validation(self, report: ValidationReport) -> None:
        self.validations.append(report)

    def sample(self, step: int, text: str) -> None:
        self.samples.append((step, text))

    def saved(self, step: int, path: str) -> None:
        self.saves.append(step)


class CommandListener(Listener):
    """The command also says things outside of the loop."""

    lost = None

    def said(self, text: str) -> None:
        pass

    def working(self, what: str, done: int, total: int) -> None:
        pass


def make_trainer(
    path: Path, settings: TrainSettings = SETTINGS, *, existing: bool = False, config: Config = CONFIG, **changes
) -> Trainer:
    model = build_model(config, seed=settings.seed)
    optimizer = adamw(model, settings)
    folder = RunFolder.open(path) if existing else RunFolder.create(path, {"settings": settings.to_dict()}, model, "{}")
    parts = {
        "model": model,
        "compiled": HostModel(model),
        "optimizer": optimizer,
        "batches": RandomBatches(),
        "settings": settings,
        "folder": folder,
        "reporter": Listener(),
        "sample": lambda model: "a sample",
    }
    return Trainer(**{**parts, **changes})
