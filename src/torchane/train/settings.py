"""What decides the numbers of a run: with the same settings, data and device, a run gives the same bits."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torchane.errors import RunFolderError, UsageError, shown
from torchane.options import NUMBERS


@dataclass(frozen=True)
class TrainSettings:
    """A step is one optimizer update of grad_accum_steps x batch_size windows of seq_len tokens each.
    A validation takes eval_windows windows, or all where there are fewer.
    """

    steps: int
    batch_size: int
    seq_len: int
    lr: float
    warmup_steps: int
    grad_accum_steps: int = 1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    grad_clip: float = 1.0
    final_lr_ratio: float = 0.1
    seed: int = 0
    eval_interval: int = 100
    eval_windows: int = 64
    checkpoint_interval: int = 100

    def __post_init__(self) -> None:
        for field in fields(self):
            allowed, value = NUMBERS[field.name], getattr(self, field.name)
            allowed.require(field.name, value)
            object.__setattr__(self, field.name, value if allowed.whole else float(value))  # torch takes no mixture of both

    @property
    def windows(self) -> int:
        """The windows of one step. Micro-steps are merged into one batch, so that gradients leave the device once."""
        return self.batch_size * self.grad_accum_steps

    @property
    def tokens_per_step(self) -> int:
        return self.windows * self.seq_len

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any, *, source: str) -> "TrainSettings":
        """Raises RunFolderError naming the source and what does not fit."""
        if not isinstance(values, Mapping):
            raise RunFolderError(f"{source}: the settings are {shown(values)}, and not an object. The file was edited or damaged.")
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise RunFolderError(
                f"{source}: the settings have {sorted(set(values) - names) or 'nothing'} too many and "
                f"{sorted(names - set(values)) or 'nothing'} missing. The run was written by another version of torchane: "
                "resume it with that one."
            )
        try:
            return cls(**values)
        except (TypeError, UsageError) as error:
            raise RunFolderError(f"{source}: {error} The file was edited or damaged.") from error
