"""Dropout: torch draws the mask on the host, programs multiply by it.

`native_dropout` is taken apart (`decompose.py`) into a draw of the mask, which has no rule, and a
product, which has one. Its gradient is a product with the same mask.
"""

import torch

from torchane.capture.rules.common import scaled
from torchane.capture.rules.registry import Value, lowers
from torchane.mil.build import Builder

aten = torch.ops.aten


@lowers(aten.native_dropout_backward.default, masks=True)
def native_dropout_backward(b: Builder, grad: Value, mask: Value, scale: float) -> Value:
    return scaled(b, b.mul(x=grad, y=mask), scale)
