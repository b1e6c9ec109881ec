"""The layout pass: from PyTorch's shapes to rank 4, channels first.

    lower     the pass                                     rules     which rule lays out which op
    search    which order to store every value in          ways      the ways to run an op: what it reads and writes how
    order     orders of axes, and views of them            emit      writes the program
    elementwise, matmul, moves, reduce: the rules
"""

from torchane.passes.layout.lower import lower_layout

__all__ = ["lower_layout"]
