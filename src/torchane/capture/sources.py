"""Where in the user's code a graph node comes from: the module's name, the file and the line."""

import functools
import re
from pathlib import Path

import torch
from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_TORCH = str(Path(torch.__file__).parent)


def module_of(node: fx.Node) -> str:
    """The innermost module that a node belongs to, e.g. `model.layers.3.mlp`; empty where none claims it."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    return "" if not stack else dotted(list(stack.values())[-1][0])


def line_of(node: fx.Node) -> str:
    """`llama.py:72`, the innermost line outside of torch that made the node; empty where none is known."""
    return _innermost(node.meta.get("stack_trace") or "")


@functools.lru_cache(4096)  # a traceback is a page of text, and most are asked for several times in each of a model's layers
def _innermost(trace: str) -> str:
    frames = [match for match in _FRAME.finditer(trace) if is_users(match["file"])]
    return f"{Path(frames[-1]['file']).name}:{frames[-1]['line']}" if frames else ""


def place_of(node: fx.Node) -> str:
    """`in model.layers.3.mlp, llama.py:72`, as far as known, with a space before it."""
    known = [part for part in (module_of(node), line_of(node)) if part]
    return f" in {', '.join(known)}" if known else ""


def is_users(file: str) -> bool:
    """The file is not torch's own and not the standard library's."""
    return not file.startswith(_TORCH) and "/contextlib.py" not in file


def dotted(source: str) -> str:
    """A Dynamo source such as `L['self']._modules['layers']._modules['0']`, as the user would write it."""
    names = re.findall(r"\w+", re.sub(r"\b(?:_modules|_parameters|_buffers|__dict__)\b", "", source))
    while names and names[0] in ("L", "G", "self", "fn"):  # locals, globals, and what wraps the compiled module
        names = names[1:]
    return ".".join(names)
