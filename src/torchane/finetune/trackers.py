"""Weights & Biases and SwanLab, where `--report-to` names them: the same numbers as on the terminal, under mlx-lm's names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchane.errors import UsageError, nearest
from torchane.finetune.extras import require_other

NAMES = ("wandb", "swanlab")


class Trackers:
    """Open trackers; `log` sends numbers to all of them. Raises UsageError for an unknown name or a package that is not there."""

    def __init__(self, names: Sequence[str], project: str | None, folder: Path, config: Mapping[str, Any]) -> None:
        modules = check(names)
        self._open = []
        for module, name in zip(modules, names, strict=True):
            if name == "wandb":
                module.init(project=project, name=folder.name, dir=str(folder), config=dict(config))
            else:
                module.init(project=project, experiment_name=folder.name, logdir=str(folder / "swanlog"), config=dict(config))
            self._open.append(module)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        for module in self._open:
            module.log(dict(values), step=step)

    def close(self) -> None:
        for module in self._open:
            module.finish()


def check(names: Sequence[str]) -> list[Any]:
    """Their packages. Raises UsageError for an unknown name or a package that is not there."""
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--report-to {name}{nearest(name, NAMES)}: known are {' and '.join(NAMES)}.")
    return [require_other(name) for name in names]


def split_names(text: str | None) -> list[str]:
    """wandb,swanlab -> both; nothing said -> none."""
    return [name.strip().lower() for name in (text or "").split(",") if name.strip()]
