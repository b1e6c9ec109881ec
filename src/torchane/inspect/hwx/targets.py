"""Generations of the engine by the CPU subtype in a file's header.

Sources: FTN and M6S (tags in docs/formats.md); where they differ, FTN, whose pairs match the shipped chips.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A generation, the chips that have it, and the version of its task descriptors."""

    name: str
    chips: str
    version: int


TARGETS = {
    1: Target("H11", "", 5),
    2: Target("T0", "", 4),
    3: Target("H12", "", 6),
    4: Target("H13", "A14, M1", 7),
    5: Target("H14", "A15, M2", 11),
    6: Target("H15", "A16, M3", 8),
    7: Target("H16", "A17 Pro, M4", 17),
    8: Target("M11", "", 10),
    9: Target("H17", "A18, M5", 19),
    10: Target("H18", "A19", 20),
    11: Target("H18g, H19", "M6", 24),
    12: Target("", "", 31),
    14: Target("", "", 36),
    16: Target("", "", 28),
    17: Target("M12", "", 26),
}
