"""The op table, one module per family; importing this package fills `torchane.mil.kinds.KINDS`."""

from torchane.mil.ops import constant, elementwise, linear, normalize, reduce, shape

__all__ = ["constant", "elementwise", "linear", "normalize", "reduce", "shape"]
