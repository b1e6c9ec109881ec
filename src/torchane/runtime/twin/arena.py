"""Places values in one arena so that those which never live at once share memory.

Largest first, each at the lowest place that is free while it lives: from the step that writes it to the last
one that reads it, both included.
"""

from collections.abc import Sequence

from torchane.runtime.twin.arrays import SCRATCH, Root, TapeStep

#: 64 bytes in fp16 numbers: a line of the cache, and what vector loads like.
ALIGNMENT = 32


def place_scratch(steps: Sequence[TapeStep]) -> int:
    """Sets the offset of every scratch root that reaches memory; returns the size of the arena in numbers."""
    lives: dict[Root, tuple[int, int]] = {}
    for index, step in enumerate(steps):
        for array in (*step.writes, *step.reads, *step.aside):
            if array.root.space == SCRATCH:
                lives[array.root] = (lives.get(array.root, (index, index))[0], index)
    placed: list[tuple[int, int, int, int]] = []  # first and last step, begin and end in the arena
    for root in sorted(lives, key=lambda root: -root.size):
        first, last = lives[root]
        size = -(-root.size // ALIGNMENT) * ALIGNMENT
        offset = 0
        for _, _, begin, end in sorted((p for p in placed if p[0] <= last and first <= p[1]), key=lambda p: p[2]):
            if begin - offset >= size:
                break
            offset = max(offset, end)
        root.offset = offset
        placed.append((first, last, offset, offset + size))
    return max((end for *_, end in placed), default=0)
