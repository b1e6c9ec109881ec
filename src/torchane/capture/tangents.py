"""Incoming gradients that differ so much in size that one loss scale cannot hold them: the backward runs once for each size.

    grad of logits 1, of a second head 1e-9 ──► backward(1, 0) + backward(0, 1e-9), each at a scale of its own
A backward whose every op is proportional to the incoming gradient gives the sum of what it gives for parts of it. Where one is not
(a clip, a gradient that begins inside), it is run by PyTorch. Apart are taken whole gradients, and the samples of one where the
gradient of an input is wanted, which keeps them apart: what a parameter's gradient sums is lost in the rounding of its largest part anyway.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch

from torchane.capture.host import largest_of
from torchane.capture.policies.linearity import NOT_PROPORTIONAL, NOT_REACHED, SEED
from torchane.capture.report import Row
from torchane.runtime.loss_scale import LossScale

#: A gradient 2^20 smaller than the largest, which lies at 2^8, keeps few of its digits in fp16 on its way through a model.
SPAN = 20
#: Runs of a backward; the last takes all that is smaller.
_MOST = 4

Run = Callable[[Sequence[Any], LossScale | None], list[Any]]


def is_proportional(rows: Iterable[Row]) -> bool:
    """Whether all of a backward is: two gradients added give two results added."""
    return not any(row.graph == "backward" and row.why.startswith((NOT_PROPORTIONAL, NOT_REACHED, SEED)) for row in rows)


class ByMagnitude:
    """Runs a backward for the parts of its incoming gradients, and adds what they give.

    positions: of the incoming gradients. by_sample: whether samples are kept apart. run(args, scale): the largest part has the graph's own
    loss scale, None; each of the others has one here.
    """

    def __init__(self, positions: Collection[int], by_sample: bool, run: Run):
        self.positions = positions
        self.by_sample = by_sample
        self.scales: list[LossScale | None] = [None]
        self.run = run

    def __call__(self, parts: Sequence[Sequence[Any]]) -> list[Any]:
        while len(self.scales) < len(parts):
            self.scales.append(LossScale())
        total: list[Any] = []
        for part, scale in zip(parts, self.scales, strict=False):
            found = self.run(part, scale)
            total = [_added(a, b) for a, b in zip(total, found, strict=True)] if total else found
        return total

    def parts(self, args: Sequence[Any]) -> list[Sequence[Any]]:
        """The arguments once for each size of gradients, the largest first; `args` alone where there is one."""
        gradients = [i for i in self.positions if _is_gradient(args[i])]
        if not gradients or (len(gradients) == 1 and not self.by_sample):
            return [args]
        sizes = {i: self._sizes(args[i]) for i in gradients}
        largest = max(float(size.max()) for size in sizes.values())
        if not 0 < largest < float("inf"):  # NaN, too
            return [args]
        levels = {i: _levels(size, largest) for i, size in sizes.items()}
        wanted = sorted(set().union(*(level[sizes[i] > 0].tolist() for i, level in levels.items())))
        if len(wanted) < 2:
            return [args]
        return [self._part(args, levels, level) for level in wanted]

    def _sizes(self, tangent: torch.Tensor) -> torch.Tensor:
        """The largest magnitude of each sample; of all of it where samples stay together."""
        if not self.by_sample or tangent.dim() < 2:
            return torch.tensor([largest_of(tangent)])
        return tangent.detach().abs().flatten(1).amax(1)

    def _part(self, args: Sequence[Any], levels: dict[int, torch.Tensor], level: int) -> list[Any]:
        part = list(args)
        for i, found in levels.items():
            chosen = found == level
            if not chosen.all():
                chosen = chosen.view(-1, *[1] * (args[i].dim() - 1)) if len(chosen) > 1 else chosen.view([1] * args[i].dim())
                part[i] = torch.where(chosen, args[i], 0.0).to(args[i].dtype)
        return part


def _is_gradient(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0


def _levels(sizes: torch.Tensor, largest: float) -> torch.Tensor:
    """0 for what is within 2^SPAN of the largest, 1 for what is within its square, ..."""
    below = torch.log2(largest / sizes.double().clamp(min=1e-300))
    return (below / SPAN).floor().clamp(0, _MOST - 1).long()


def _added(a: Any, b: Any) -> Any:
    return a + b if isinstance(a, torch.Tensor) and a.is_floating_point() else a
