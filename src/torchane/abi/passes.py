"""What a pass did to a program: kept with the program, and written beside it where programs are dumped."""

from typing import NamedTuple


class PassRun(NamedTuple):
    """ops: how many the program has after the pass, constants that stand in statements of their own included. moves: how far
    numbers may move by it; empty: not at all."""

    name: str
    ops: int
    time_s: float
    moves: str
