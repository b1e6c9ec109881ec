"""Which sizes vary from call to call, and the one warning that says so.

    x (4, 37), (4, 50), (4, 61), ..  ──► dimension 1 of x had 8 sizes, 37 to 412
A model that is compiled again and again spends its time there, and a user who is not told looks for it elsewhere.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from torchane.errors import TorchaneWarning

#: Compilations of one thing, after which it is said.
MANY = 8
#: The same where each serves a bucket of sizes: lengths up to 512 have eight.
MANY_BUCKETS = 16
#: The same where no size varies: training, evaluation and other modes have graphs of their own.
MANY_OTHERS = 32

_LOOK = "TORCH_LOGS=recompiles says what changed."
ADVICE = "Pad batches to a few lengths in the collate function, or drop the last partial batch (drop_last=True)."
_FEWER = "Name fewer buckets (options={'buckets': (128, 512)}), or pad batches to a few lengths in the collate function."


class Varied:
    """The sizes that one compiled thing was given. what: as the user would name it."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.times_s: list[float] = []
        self._of_buckets = 0
        self._sizes: dict[tuple[str, int], set[int]] = {}

    def note(self, names: Sequence[str], args: Iterable[Any]) -> None:
        for name, value in zip(names, args, strict=False):
            if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
                for axis, size in enumerate(value.shape):
                    if isinstance(size, int):
                        self._sizes.setdefault((name, axis), set()).add(size)

    def compiled(self, seconds: float, reason: str = "", is_bucket: bool = False) -> None:
        """It was compiled once more; warns when that was often. reason: why a program does not serve several sizes, a sentence."""
        self.times_s.append(seconds)
        self._of_buckets += is_bucket
        if is_bucket:
            is_often = self._of_buckets == MANY_BUCKETS
        else:
            varies = any(len(sizes) > 1 for sizes in self._sizes.values())
            is_often = len(self.times_s) - self._of_buckets == (MANY if varies or reason else MANY_OTHERS)
        if is_often:
            warnings.warn(self._text(reason, is_bucket), TorchaneWarning, stacklevel=3)

    def _text(self, reason: str, is_bucket: bool) -> str:
        varying = [
            f"dimension {axis} of {name} had {len(sizes)} sizes, {min(sizes)} to {max(sizes)}"
            for (name, axis), sizes in self._sizes.items()
            if len(sizes) > 1
        ]
        said = "; ".join(varying[:3]) + (f"; and {len(varying) - 3} more" if len(varying) > 3 else "")
        found = said or "no size varies: a Python value, a dtype or a mode of torch changed"
        seconds = sum(self.times_s) / len(self.times_s)
        advice = _FEWER if is_bucket else ADVICE if said else _LOOK
        return (
            f"{self.what} was compiled {len(self.times_s)} times: {found}. Each time took {seconds:.1f} s and has programs of its own."
            f"{f' {reason}' if reason else ''} {advice}"
        )
