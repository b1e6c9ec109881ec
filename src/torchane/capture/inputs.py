"""Refuses, by name, what no program of a graph could use: wrong devices and parameters that fp16 cannot stand for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from torchane.capture.sources import dotted
from torchane.errors import CaptureError

#: Parameters of these types train through programs; gradients come back in the same type.
PARAMETERS = (torch.float32, torch.float16, torch.bfloat16)


def check_inputs(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
    """Raises CaptureError naming the parameter, buffer or argument."""
    for node, example in zip(gm.graph.find_nodes(op="placeholder"), example_inputs, strict=False):
        if isinstance(example, torch.Tensor):
            problem = _problem(example)
            if problem is not None:
                kind = "parameter" if isinstance(example, torch.nn.Parameter) else "tensor"
                raise CaptureError(f"The {kind} {name_of(node)} {problem}")


def _problem(tensor: torch.Tensor) -> str | None:
    if tensor.layout != torch.strided:
        return f"has the layout {tensor.layout}, and programs take dense tensors. Pass tensor.to_dense()."
    if tensor.device.type != "cpu":
        return (
            f"is on the device {tensor.device}. The backend takes tensors in CPU memory, which the Neural Engine "
            'shares, and moves them itself: keep model and inputs on the CPU (model.to("cpu")).'
        )
    is_trained = isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad
    if is_trained and tensor.dtype not in PARAMETERS:
        cure = "model.float()" if tensor.dtype == torch.float64 else "two real parameters instead"
        return (
            f"is {tensor.dtype}, and programs compute in fp16 with fp32 sums; {tensor.dtype} would promise digits "
            f"or parts that they do not have. Use {cure}, or leave this module out of torch.compile."
        )
    return None


def name_of(node: fx.Node) -> str:
    """A placeholder of Dynamo's graph, as the user would write it."""
    argument = node.meta.get("grapharg")
    if argument is None:
        return node.name
    source = argument.source.name
    return dotted(source() if callable(source) else source) or node.name
