"""The range of every number that an option, a run.json or a config.json gives: declared here, checked everywhere.

Ends are far beyond what makes sense and below what would fail in a way that nobody could read: an overflow inside torch, memory
for numbers that do not exist. `whole` numbers are Python ints; others are finite floats.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torchane.errors import UsageError

BILLION = 10**9


@dataclass(frozen=True)
class Range:
    """From least to most, both allowed; `above`: the least itself is not."""

    least: float
    most: float
    whole: bool = True
    above: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        least = f"above {self.least:,}" if self.above else f"from {self.least:,}"
        return f"{kind} {least} to {self.most:,}"

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (value > self.least if self.above else value >= self.least) and value <= self.most

    def require(self, name: str, value: Any) -> None:
        """Raises UsageError, which names both."""
        if not self.holds(value):
            raise UsageError(f"{name} is {shown(value)}, and it must be {self}.")


def shown(value: Any) -> str:
    """A value for a message: what a file says may be long."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


def _real(least: float, most: float, *, above: bool = False) -> Range:
    return Range(least, most, whole=False, above=above)


#: Options of the command line, and the settings in run.json.
OPTIONS: Mapping[str, Range] = MappingProxyType({
    "steps": Range(1, BILLION),
    "batch_size": Range(1, 1 << 20),
    "grad_accum": Range(1, 1 << 20),
    "grad_accum_steps": Range(1, 1 << 20),
    "seq_len": Range(1, 1 << 20),
    "lr": _real(0, 1000, above=True),
    "seed": Range(0, (1 << 63) - 1),  # torch takes no more
    "eval_interval": Range(1, BILLION),
    "eval_windows": Range(1, 1 << 60),  # grows with the three before
    "checkpoint_interval": Range(1, BILLION),
    "warmup_steps": Range(0, BILLION),
    "weight_decay": _real(0, 1000),
    "beta1": _real(0, 1 - 2**-30),
    "beta2": _real(0, 1 - 2**-30),
    "eps": _real(0, 1, above=True),
    "grad_clip": _real(0, 1e30, above=True),
    "final_lr_ratio": _real(0, 1),
    "threads": Range(1, 1024),
    "max_tokens": Range(1, BILLION),
    "temperature": _real(0, 1000),
    "top_k": Range(1, BILLION),
    "warmup": Range(1, 1_000_000),
    "rounds": Range(1, 1_000_000),
})  # fmt: skip

#: Sizes and constants of models, by the keys of a `config.json`.
MODEL: Mapping[str, Range] = MappingProxyType({
    "vocab_size": Range(1, 1 << 24),
    "hidden_size": Range(1, 1 << 20),
    "intermediate_size": Range(1, 1 << 22),
    "num_hidden_layers": Range(1, 4096),
    "num_attention_heads": Range(1, 1 << 16),
    "num_key_value_heads": Range(1, 1 << 16),
    "max_position_embeddings": Range(1, 1 << 24),
    "head_dim": Range(1, 1 << 16),
    "rope_theta": _real(0, 1e30, above=True),
    "rms_norm_eps": _real(0, 1),
    "initializer_range": _real(0, 1000),
    "n_positions": Range(1, 1 << 24),
    "n_embd": Range(1, 1 << 20),
    "n_layer": Range(1, 4096),
    "n_head": Range(1, 1 << 16),
    "layer_norm_epsilon": _real(0, 1),
    "embd_pdrop": _real(0, 1 - 2**-24),
    "attn_pdrop": _real(0, 1 - 2**-24),
    "resid_pdrop": _real(0, 1 - 2**-24),
})  # fmt: skip

#: A token that begins or ends a text, where a `config.json` names one.
TOKEN_ID = Range(0, (1 << 31) - 1)
