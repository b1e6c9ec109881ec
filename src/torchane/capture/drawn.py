"""Masks of dropout drawn by a kernel of ours, from torch's generator and with torch's bits.

    state of torch's generator ──► 624 words of a Mersenne Twister ──► bools, and the state behind them
torch draws them one by one on most processors, which costs GPT-2 as much of a step as AdamW. On some it draws with MKL, from the same generator and with
other bits: so both are tried once, with a generator apart, and where they differ torch goes on drawing.
"""

import functools
import threading

import torch
from torch import Tensor, fx

from torchane import native
from torchane.capture.torch_private import GENERATOR_BYTES, twister_of

aten = torch.ops.aten

#: Of fewer numbers the state costs more to copy than they do to draw.
_LEAST = 4096

_lock = threading.Lock()


def draw_ourselves(graph: fx.Graph) -> None:
    """Rewrites what PyTorch will run, in place: dense bools that are True with one probability, drawn from the default generator."""
    for node in graph.find_nodes(op="call_function", target=aten.bernoulli.p):
        value = node.meta.get("val")
        is_plain = isinstance(value, Tensor) and value.dtype == torch.bool and value.is_contiguous() and len(node.args) == 2 and not node.kwargs
        if is_plain and isinstance(node.args[1], float) and all(isinstance(size, int) for size in value.shape) and value.numel() >= _LEAST:
            blank = node.args[0]
            node.target, node.args = drawn, (tuple(value.shape), node.args[1])
            if not blank.users and blank.op == "call_function":
                graph.erase_node(blank)


def drawn(shape: tuple[int, ...], p: float) -> Tensor:
    """bools, True with probability p: what torch.empty(shape, dtype=torch.bool).bernoulli_(p) gives, and its generator's state as that leaves it."""
    mask = torch.empty(shape, dtype=torch.bool, device="cpu")
    if not _is_torchs() or not _draw(mask, p, torch.default_generator):
        mask.bernoulli_(p)
    return mask


def _draw(mask: Tensor, p: float, generator: torch.Generator) -> bool:
    """False where another thread has drawn meanwhile: then nothing was taken from the generator."""
    with _lock:
        before = generator.get_state()
        state = before.clone()
        words, left, given = twister_of(state.numpy())
        given[0] = native.bernoulli(mask.numpy(), p, words, 625 - int(left[0]))
        left[0] = 625 - int(given[0])
        if not torch.equal(generator.get_state(), before):
            return False
        generator.set_state(state)
        return True


@functools.cache
def _is_torchs() -> bool:
    """Whether this torch, on this processor, draws as the kernel does."""
    if not native.is_built():
        return False
    ours, theirs = (torch.Generator().manual_seed(2**40 + 1) for _ in range(2))
    if ours.get_state().numel() != GENERATOR_BYTES:
        return False
    for p, count in ((0.9, 5001), (0.25, 70_000), (1 / 3, 1)):
        mine, its = (torch.empty(count, dtype=torch.bool, device="cpu") for _ in range(2))
        _draw(mine, p, ours)
        its.bernoulli_(p, generator=theirs)
        for generator in (ours, theirs):
            torch.empty(3, dtype=torch.float32, device="cpu").uniform_(generator=generator)  # which takes one word a number
        if not torch.equal(mine, its) or not torch.equal(ours.get_state(), theirs.get_state()):
            return False
    return True
