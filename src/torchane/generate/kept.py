"""What the cache of a conversation holds, so that a turn reads only what is new in it.

    turn 1   fill, prompt, answer                                     fill: 0 in the mask
    turn 2   prompt, answer and more  ──► the cache is cropped to what both begin with ──►  fill, prompt, answer, fill, more
A template may write an answer otherwise than the model did, or leave parts of it out: what follows the first difference is read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Kept:
    """A cache of transformers, for one text. ids, mask: of its places; 0 in the mask is what only fills up. room: places that it has; None:
    it grows."""

    cache: Any
    room: int | None = None
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)

    @property
    def can_crop(self) -> bool:
        """A sliding window has let go of what lies before it."""
        return not any(self.cache.is_sliding)

    def common(self, tokens: Sequence[int]) -> tuple[int, int]:
        """(how many of the tokens it holds from the first on, the places up to the last of these). One token at least is left to be read."""
        count = places = 0
        for place, (token, is_text) in enumerate(zip(self.ids, self.mask, strict=True), 1):
            if is_text:
                if count == len(tokens) - 1 or token != tokens[count]:
                    break
                count, places = count + 1, place
        return count, places

    def crop(self, places: int) -> None:
        """Gives up what lies behind so many places."""
        if places < len(self.ids):
            self.cache.crop(places - len(self.ids))
            del self.ids[places:], self.mask[places:]

    def wrote(self, ids: Sequence[int], mask: Sequence[int]) -> None:
        """After a text of these tokens, of which the first have this mask: the last one drawn was not read."""
        count = int(self.cache.get_seq_length())
        self.ids = list(ids[:count])
        self.mask = [*mask, *[1] * (count - len(mask))]
