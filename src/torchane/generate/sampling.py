"""How the next token is drawn, and where a text ends: settings for every model, and text that grows token by token.

    logits ─► repetition penalty ─► temperature ─► top-k ─► top-p ─► min-p ─► draw         as transformers orders them
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchane.errors import NumericsError, UsageError
from torchane.options import NUMBERS

UNFINISHED = "\ufffd"  # how bytes look that do not make a character, perhaps because the rest is yet to come


@dataclass(frozen=True)
class Sampling:
    """temperature 0: always the likeliest token. top_k: None or 0 for all. top_p 1, min_p 0, repetition_penalty 1: no such filter.
    stop: texts that end the writing and are left out. Raises UsageError for a number out of range, or an empty stop."""

    max_tokens: int = 200
    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_tokens", "temperature", "top_p", "min_p", "repetition_penalty", "seed"):
            NUMBERS[name].require(name, getattr(self, name))
        if self.top_k is not None:
            NUMBERS["top_k"].require("top_k", self.top_k)
        if not all(self.stop):
            raise UsageError("A text to stop at is empty: it would stop at once.")


def require_finite(logits: Tensor) -> None:
    """Raises NumericsError where a logit is not a finite number."""
    if not logits.isfinite().all():
        raise NumericsError(
            "The model's scores of the next token are not finite numbers: its weights are damaged, or its training went wrong. "
            "Go back to another checkpoint."
        )


def penalised(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """logits (V,) with those of tokens that were seen divided by the penalty, or multiplied where they are negative.
    Source: Keskar et al. 2019, arXiv 1909.05858."""
    if penalty == 1:
        return logits
    index = torch.tensor(sorted(set(seen)))
    index = index[index < len(logits)]
    chosen = logits[index]
    return logits.index_copy(0, index, torch.where(chosen < 0, chosen * penalty, chosen / penalty))


def kept(probabilities: Tensor, top_p: float, min_p: float) -> Tensor:
    """probabilities (V,), zero outside the likeliest tokens that together make top_p, and below min_p of the likeliest one; the likeliest
    always stays. Sources: Holtzman et al. 2019, arXiv 1904.09751; Nguyen et al. 2024, arXiv 2407.01082."""
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        is_beyond = ordered.cumsum(0) - ordered >= top_p
        is_beyond[0] = False
        probabilities = probabilities.index_fill(0, order[is_beyond], 0)
    if min_p > 0:
        probabilities = torch.where(probabilities < min_p * probabilities.max(), torch.zeros_like(probabilities), probabilities)
    return probabilities


class Text:
    """What was written so far, given out as soon as it is certain: no half characters, and nothing that may begin a stop."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._tokens: list[int] = []
        self._said = 0
        self.text = ""
        self.is_over = False

    @property
    def tokens(self) -> int:
        return len(self._tokens)

    def add(self, token: int) -> str:
        """The piece that this token makes certain; "" where none does. `is_over` after a stop."""
        self._tokens.append(token)
        text = self._decode(self._tokens).rstrip(UNFINISHED)
        ends = [at for word in self._stop if (at := text.find(word)) >= 0]
        if ends:
            self.text, self.is_over = text[: min(ends)], True
        else:
            self.text = text
        certain = len(self.text) if ends else len(text) - self._held(text)
        return self._give(certain)

    def finish(self) -> str:
        """What is left at the end."""
        if not self.is_over:
            self.text = self._decode(self._tokens)
        return self._give(len(self.text))

    def _give(self, end: int) -> str:
        piece = self.text[self._said : end]
        self._said = max(self._said, end)
        return piece

    def _held(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop."""
        return max((size for word in self._stop for size in range(1, len(word)) if text.endswith(word[:size])), default=0)
