"""A classifier and its loss, some of the vocabulary's tokens after the others, so that no surface holds a score for each token of it.

    nll = cross_entropy(x W^T, target)   ->   of each slice W_i: largest score and sum of exponentials;   nll from these of all slices
    dx, dW                               ->   of each slice its scores again, their gradient d_i;   dx = sum of d_i W_i,   dW = the d_i^T x one below the other
Where programs are the processor's own work, scores stay in memory from forward to backward, in fp16, in place of being computed again (`bytes_to_keep`).
Done to Dynamo's graph, where the loss is one call, if nothing else reads the scores. A slice of the weight is a view on the host, staged as a
weight of its own (wide.py), and a slice of its gradient leaves straight into its place. The loss itself, a few numbers a row, is computed by
PyTorch in float32.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

import torchane.capture.vocabulary_ops as ops
from torchane.capture.compile_options import Options
from torchane.capture.marks import SCORES_LEAVE
from torchane.mil.types import FP16
from torchane.plan.cost import CORES, SLOW_MULTIPLE_BYTES
from torchane.runtime.device import Device

#: Scores from which on a loss is read slice by slice: those of 256 tokens of a vocabulary of 32,000 are more, and 8 MiB in fp16 alone.
LEAST_SCORES = 1 << 22
#: Scores of one slice, as far as slices are neither narrower nor wider than these, nor more than so many: a program takes 128 ports.
SCORES, NARROWEST, WIDEST, MOST_SLICES = 1 << 23, 2048, 16384, 20
#: Scores that a forward leaves for its backward take so many bytes at most.
KEPT_BYTES = 1 << 29
#: More tokens than a gradient sums over in one product.
_MOST_ROWS = 16384
#: Slices begin at multiples of this, so that their rows meet what ports ask for.
_MULTIPLE = 32


def slice_losses(gm: fx.GraphModule, most_kept_bytes: int = 0) -> None:
    """Replaces the losses that are worth it, in place. One whose scores something else reads, too, is marked, and reports say so.
    most_kept_bytes: of scores that each leaves for its backward."""
    changed = False
    for node, found in losses_in(gm.graph):
        if found.leaves:
            node.meta["custom"] = {**(node.meta.get("custom") or {}), SCORES_LEAVE: True}
        else:
            _replace(node, found, most_kept_bytes)
            changed = True
    if changed:
        gm.recompile()


def losses_in(graph: fx.Graph) -> list[tuple[fx.Node, "Loss"]]:
    """The losses of a graph of Dynamo's that are worth it."""
    if any("autocast" in getattr(node.target, "__name__", "") for node in graph.nodes if node.op == "call_function"):
        return []  # what is cast between classifier and loss is autocast's to say
    calls = (node for target in (F.cross_entropy, F.nll_loss) for node in graph.find_nodes(op="call_function", target=target))
    return [(node, found) for node in calls if (found := _loss_of(node)) is not None]


def slices_of(rows: int, vocab_size: int, channels: int) -> list[tuple[int, int]]:
    """Where each slice begins and ends. No slice has weights that make up whole MiB in a core, which some engines stream at half the rate."""
    size = min(max(SCORES // rows, NARROWEST), WIDEST)
    count = max(1, min(-(-vocab_size // size), MOST_SLICES))
    size = -(-vocab_size // count)
    size += -size % _MULTIPLE
    while _is_slow(size, channels):
        size += _MULTIPLE
    return [(start, min(start + size, vocab_size)) for start in range(0, vocab_size, size)]


def bytes_to_keep(options: Options, device: Device) -> int:
    """How many bytes of scores a loss may leave for its backward. None for an engine, nor for programs that are made to be an engine's (a chip's, its arithmetic,
    range control): there multiply-adds are cheaper than memory. None where memory is to be saved."""
    is_own = not device.frees_processor and device.arithmetic != "engine" and options.chip == "portable" and not options.wants_ranges(device)
    return KEPT_BYTES if is_own and options.recompute == "none" else 0


def kept_slices(rows: int, slices: Sequence[tuple[int, int]], most_bytes: int) -> list[tuple[int, int]]:
    """Those whose scores stay for the backward: the first ones, as many as fit. Where scores are no whole rows of a port none stay: a product would fill them up."""
    kept, size_bytes = [], 0
    for start, end in slices:
        size_bytes += FP16.bits // 8 * rows * (end - start)
        if size_bytes <= most_bytes and rows * (end - start) % _MULTIPLE == 0:
            kept.append((start, end))
    return kept


def most_kept(rows: int, vocab_size: int) -> int:
    """Bytes of the scores of so many tokens, where they are kept, at most."""
    return min(FP16.bits // 8 * rows * vocab_size, KEPT_BYTES) if is_worth_it(rows, vocab_size) else 0


def _is_slow(size: int, channels: int) -> bool:
    return -(-size // CORES) * channels * 2 % SLOW_MULTIPLE_BYTES == 0


def is_worth_it(rows: int, vocab_size: int) -> bool:
    """Whether so many tokens' loss over such a vocabulary is read slice by slice."""
    return rows * vocab_size >= LEAST_SCORES and rows <= _MOST_ROWS and vocab_size >= 2 * NARROWEST


def with_loss(self: nn.Module, tokens: Tensor, targets: Tensor, ignore_index: int = -100, *positions: Tensor) -> Tensor:
    """tokens, targets and, where the model takes them, positions (B, S) -> nll (B * S,) float32, 0 where a target is ignored, of a model that gives logits (B, S, V).

    The model is called `self`, which is left out of the names that people see: they are those of the model alone.
    """
    return F.cross_entropy(self(tokens, *positions).flatten(0, 1), targets.flatten(), reduction="none", ignore_index=ignore_index)


class LogitsAreWhole(Exception):
    """A graph has no loss that could be computed in slices: logits alone are the better graph."""


def require_slices(gm: fx.GraphModule) -> None:
    """Raises LogitsAreWhole."""
    if all(found.leaves for _, found in losses_in(gm.graph)):
        raise LogitsAreWhole


# ---- the loss

#: What is done to the leading axes of scores, to be done to what they are made of: a subscript, or a shape of these axes. Plain data, which a
#: graph may hold.
Move = tuple[str, Any]
_SUBSCRIPT, _SHAPE = "subscript", "shape"


def sliced_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, moves: Sequence[Move], reduction: str, ignore_index: int, dtype: torch.dtype, most_kept_bytes: int
) -> Tensor:
    """As cross_entropy of the scores x weight^T (.., V), after `moves` of their leading axes, and of target: x (.., C), weight (V, C).
    most_kept_bytes: as in slice_losses."""
    for what, how in moves:
        x = x[how] if what == _SUBSCRIPT else x.reshape(*how, x.shape[-1])
    nll: Tensor = _Losses.apply(x.reshape(-1, x.shape[-1]), weight, target.reshape(-1), ignore_index, most_kept_bytes)  # type: ignore[no-untyped-call]
    if reduction == "none":
        return nll.view(target.shape).to(dtype)
    total = nll.sum()
    return (total if reduction == "sum" else total / (target != ignore_index).sum()).to(dtype)


class _Losses(torch.autograd.Function):
    """x (T, C), weight (V, C), target (T,) -> nll (T,) float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, target: Tensor, ignore_index: int, most_kept_bytes: int) -> Tensor:
        slices = slices_of(len(x), *weight.shape)
        ctx.kept = kept_slices(len(x), slices, most_kept_bytes)
        found, scores = [], []
        for start, end in slices:
            given = x, weight[start:end], ops.vocabulary_code(target, start, end - start)
            if (start, end) in ctx.kept:
                *numbers, kept = ops.vocabulary_kept_scores(*given)
                scores.append(kept)
            else:
                numbers = ops.vocabulary_scores(*given)
            found.append(numbers)
        nll, *rest = ops.vocabulary_loss(*map(list, zip(*found, strict=True)), target, ignore_index, weight.shape[0])
        ctx.save_for_backward(x, weight, target, *rest, *scores)
        return nll

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight, target, taken, factor, rest, *kept = ctx.saved_tensors
        scores = dict(zip(ctx.kept, kept, strict=True))
        rows = ops.vocabulary_rows(grad_nll, factor)
        of_x, of_weight = [], []
        for start, end in slices_of(len(x), *weight.shape):
            code, part = ops.vocabulary_code(target, start, end - start), weight[start:end]
            if (start, end) in scores:
                grad = ops.vocabulary_gradient_of(rows, scores[start, end], code, taken, rest).to(weight.dtype)
            else:
                grad = ops.vocabulary_gradient(rows, x, part, code, taken, rest)
            if ctx.needs_input_grad[0]:
                of_x.append(grad @ part)
            if ctx.needs_input_grad[1]:
                of_weight.append(grad.T @ x)
        return _added(of_x) if of_x else None, torch.cat(of_weight) if of_weight else None, None, None, None


def _added(terms: Sequence[Tensor]) -> Tensor:
    """The sum, in pairs: each term is rounded log2 of their number times."""
    while len(terms) > 1:
        terms = [terms[i] + terms[i + 1] if i + 1 < len(terms) else terms[i] for i in range(0, len(terms), 2)]
    return terms[0]


# ---- what of a graph is such a loss


@dataclass(frozen=True)
class Loss:
    """A loss: its classifier, what lies between, first to last, and its arguments. leaves: something else reads the scores, too."""

    linear: fx.Node
    between: tuple[fx.Node, ...]
    moves: tuple[Move, ...]
    target: fx.Node
    reduction: str
    ignore_index: int
    leaves: bool


def _loss_of(node: fx.Node) -> Loss | None:
    given = _arguments(node)
    if given is None:
        return None
    scores, is_swapped = given["input"], False
    vocab_size, between, moves = None, [], []
    if node.target is F.nll_loss:
        if not _is_log_softmax(scores):
            return None
        between.append(scores)
        scores = scores.args[0]
    axis = _value(scores).dim() - 1 if _value(scores) is not None else -1
    if axis > 1:  # classes are the second axis
        if not _swaps_last(scores) or axis != 2:
            return None
        between.append(scores)
        scores, is_swapped = scores.args[0], True
    while not _is_linear(scores):
        found = _moves(scores)
        if found is None:
            return None
        between.append(scores)
        moves += reversed(found)
        scores = scores.args[0]
    chain = (*reversed(between),)
    if is_swapped and _value(given["target"]).dim() != 2:
        return None
    rows, vocab_size = _value(scores).numel() // _value(scores).shape[-1], _value(scores).shape[-1]
    if not is_worth_it(rows, vocab_size):
        return None
    leaves = any(len(one.users) != 1 for one in (scores, *chain))
    return Loss(scores, chain, tuple(reversed(moves)), given["target"], given["reduction"], given["ignore_index"], leaves)


_NAMES = {
    F.cross_entropy: ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing"),
    F.nll_loss: ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction"),
}


def _arguments(node: fx.Node) -> dict[str, Any] | None:
    """Of a loss by classes, without weights of classes or smoothing; None for others."""
    defaults = {"weight": None, "size_average": None, "reduce": None, "ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0}
    given = defaults | dict(zip(_NAMES[node.target], node.args)) | node.kwargs  # type: ignore[index]
    is_plain = given["weight"] is None and given["size_average"] is None and given["reduce"] is None and given["label_smoothing"] == 0
    target = _value(given.get("target"))
    if not is_plain or target is None or target.is_floating_point() or not isinstance(given["ignore_index"], int):
        return None
    return given if given["reduction"] in ("none", "sum", "mean") and isinstance(given.get("input"), fx.Node) else None


def _is_linear(node: fx.Node) -> bool:
    """A product with a whole parameter, without a bias, of sizes that are known and one dtype."""
    if node.target is not F.linear or len(node.args) < 2 or (len(node.args) > 2 and node.args[2] is not None) or node.kwargs:
        return False
    x, weight = _value(node.args[0]), _value(node.args[1])
    is_parameter = node.args[1].op == "placeholder" and isinstance(weight, torch.nn.Parameter)  # type: ignore[union-attr]
    return x is not None and is_parameter and x.dtype == weight.dtype and all(isinstance(size, int) for size in (*x.shape, *weight.shape))


def _is_log_softmax(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.target not in (F.log_softmax, torch.log_softmax, "log_softmax"):
        return False
    value = _value(node)
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return value is not None and value.dim() == 2 and axis in (1, -1)


def _swaps_last(node: fx.Node) -> bool:
    """(N, S, V) -> (N, V, S)."""
    axes = tuple(node.args[1:])
    if node.target == "transpose" or node.target is torch.transpose:
        return {axis % 3 for axis in axes} == {1, 2}
    flat = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
    return node.target in ("permute", torch.permute) and [axis % 3 for axis in flat] == [0, 2, 1]


def _moves(node: fx.Node) -> list[Move] | None:
    """What a call does to the leading axes, if anything; None for what does more than that."""
    if not isinstance(node, fx.Node) or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    before, after = _value(node.args[0]), _value(node)
    if before is None or after is None:
        return None
    if node.target in ("float", "contiguous") or (node.target == "to" and before.shape == after.shape and after.dtype.itemsize >= before.dtype.itemsize):
        return []
    keeps_last = before.shape[-1] == after.shape[-1] and all(isinstance(size, int) for size in (*before.shape, *after.shape))
    if node.target in ("view", "reshape", "flatten", torch.flatten, torch.reshape) and keeps_last:
        return [(_SHAPE, tuple(after.shape[:-1]))]
    if node.target is operator.getitem and keeps_last and _leaves_last(node.args[1], before.dim()):
        return [(_SUBSCRIPT, node.args[1])]
    return None


def _leaves_last(index: Any, rank: int) -> bool:
    """A subscript of plain slices that takes the last axis whole."""
    items = index if isinstance(index, tuple) else (index,)
    plain = all(item is Ellipsis or (isinstance(item, slice) and all(isinstance(end, int | None) for end in (item.start, item.stop, item.step))) for item in items)
    return plain and (items[-1] == slice(None) or (Ellipsis not in items and len(items) < rank))


def _replace(node: fx.Node, found: Loss, most_kept_bytes: int) -> None:
    value = _value(node)
    node.target = sliced_cross_entropy
    node.args = (*found.linear.args[:2], found.target, found.moves, found.reduction, found.ignore_index, value.dtype, most_kept_bytes)  # type: ignore[union-attr]
    node.kwargs = {}
    if "nn_module_stack" in found.linear.meta:
        node.meta["nn_module_stack"] = found.linear.meta["nn_module_stack"]
    for gone in (*reversed(found.between), found.linear):
        node.graph.erase_node(gone)


def _value(arg: Any) -> Tensor | None:
    value = arg.meta.get("example_value") if isinstance(arg, fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None
