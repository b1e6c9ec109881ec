"""The op table, one module per family; importing this package fills `torchane.mil.kinds.KINDS`."""

from torchane.mil.ops import (
    activation,
    constant,
    conv,
    elementwise,
    gather,
    linear,
    normalize,
    reduce,
    shape,
    slices,
    state,
    unary,
)

__all__ = [
    "activation", "constant", "conv", "elementwise", "gather", "linear", "normalize", "reduce", "shape", "slices", "state", "unary",
]  # fmt: skip
