"""The ops of a loss over a vocabulary that is read slice by slice (vocabulary.py): four are programs', three are the host's.

    target ── vocabulary_code ──► which of a slice's tokens is the target, as signs          host
    x, W_i, code ── vocabulary_scores ──► largest score, sum of exponentials, the target's score       program
    these of all slices ── vocabulary_loss ──► nll, and what the gradient needs, a number a row each  host
    d nll ── vocabulary_rows ──► a factor a row                                               host
    factor, x, W_i, code ── vocabulary_gradient ──► gradient in the scores of the slice           program

Where the scores of a slice are kept, `vocabulary_kept_scores` gives them, too, and `vocabulary_gradient_of` reads them in place of x and W_i.
The target is left out of the sums and comes in by its own score: nll = log(1 + rest / e^own), and the gradient in it is -(1 - p) = -rest / (rest + e^own).
So a token that is predicted with certainty has a loss and a gradient of all digits, where 1 - p would have none in fp16.
Here they are in PyTorch, for the host and for the steps that PyTorch computes; rules/vocabulary.py has them in MIL.
"""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

#: Signs that tell the tokens of a slice from each other: two tokens' are equal in all, or multiply to CODE - 2 at most.
CODE = 15
#: A target's score among the others: its exponential is 0 beside any.
LEFT_OUT = -1e4
#: Exponentials of the backward are 2^SPREAD times the probabilities, so that small ones have all of fp16's digits.
SPREAD = 8


def code_matrix(size: int) -> Tensor:
    """(CODE, size) float32: what a target's code is multiplied by, to give CODE at the target and CODE - 2 or less elsewhere."""
    return _signs(torch.arange(size)).T.contiguous()


def _signs(numbers: Tensor) -> Tensor:
    """The bits of whole numbers (N,) as -1 and 1, (N, CODE) float32."""
    return ((numbers[:, None] >> torch.arange(CODE)) & 1).float() * 2 - 1


@torch.library.custom_op("torchane::vocabulary_code", mutates_args=())
def vocabulary_code(target: Tensor, start: int, size: int) -> Tensor:
    """target (T,) whole numbers -> (T, CODE) float32, of each its place among tokens start to start + size; zeros where it is none of them."""
    place = target - start
    return _signs(place) * ((place >= 0) & (place < size))[:, None]


@vocabulary_code.register_fake
def _(target: Tensor, start: int, size: int) -> Tensor:
    return target.new_empty((target.shape[0], CODE), dtype=torch.float32)


@torch.library.custom_op("torchane::vocabulary_scores", mutates_args=())
def vocabulary_scores(x: Tensor, weight: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (T, C), weight (V, C), code (T, CODE) -> of the scores x weight^T of all tokens but the target: the largest, and the sum of exponentials
    less it; and the target's score, or a number far below all where it is not among them. Each (T, 1), float32 or wider."""
    return _read(_scores(x, weight), code)


@vocabulary_scores.register_fake
def _(x: Tensor, weight: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    top, total, own = (x.new_empty((x.shape[0], 1), dtype=_wide(x)) for _ in range(3))
    return top, total, own


@torch.library.custom_op("torchane::vocabulary_kept_scores", mutates_args=())
def vocabulary_kept_scores(x: Tensor, weight: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As vocabulary_scores, and the scores themselves, (T, V) float32 or wider."""
    scores = _scores(x, weight)
    return *_read(scores, code), scores


@vocabulary_kept_scores.register_fake
def _(x: Tensor, weight: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    top, total, own = (x.new_empty((x.shape[0], 1), dtype=_wide(x)) for _ in range(3))
    return top, total, own, x.new_empty((x.shape[0], weight.shape[0]), dtype=_wide(x))


@torch.library.custom_op("torchane::vocabulary_loss", mutates_args=())
def vocabulary_loss(
    tops: list[Tensor], totals: list[Tensor], owns: list[Tensor], target: Tensor, ignore_index: int, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """nll (T,), 0 where a target is ignored; and for the backward, (T, 1) each: a number of fp16 that is taken from scores, the
    factor of a row's gradient, and what is taken from the target's exponential.
    Raises IndexError for a target that is no token, as torch's cross_entropy does."""
    counts = target != ignore_index
    beyond = target[counts & ((target < 0) | (target >= vocab_size))]
    if beyond.numel():
        raise IndexError(f"Target {int(beyond[0])} is out of bounds: there are {vocab_size:,} classes, and {ignore_index} is what is ignored.")
    top, total, own = torch.cat(tops, 1), torch.cat(totals, 1), torch.cat(owns, 1).amax(1, keepdim=True)
    rest = torch.logsumexp(top + total.log(), 1, keepdim=True)
    ahead = rest - own  # of the target, all others together
    is_counted = counts[:, None]
    nll = torch.nn.functional.softplus(ahead) * is_counted
    normaliser = torch.where(is_counted, own + nll, rest) - SPREAD * math.log(2)
    taken = normaliser.to(torch.float16).to(own.dtype)
    left = (normaliser - taken).exp()  # what fp16 rounded away, so that rows are not off as a whole
    return nll[:, 0], taken, is_counted * 2.0**-SPREAD / left, torch.sigmoid(ahead) * is_counted * 2.0**SPREAD * left


@vocabulary_loss.register_fake
def _(
    tops: list[Tensor], totals: list[Tensor], owns: list[Tensor], target: Tensor, ignore_index: int, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tops[0].new_empty(len(target)), torch.empty_like(tops[0]), torch.empty_like(tops[0]), torch.empty_like(tops[0])


@torch.library.custom_op("torchane::vocabulary_rows", mutates_args=())
def vocabulary_rows(grad_output: Tensor, factor: Tensor) -> Tensor:
    """grad_output (T,), factor (T, 1) -> their product (T, 1): on the host, since fp16 would round every row."""
    return grad_output.to(factor.dtype)[:, None] * factor


@vocabulary_rows.register_fake
def _(grad_output: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(factor)


@torch.library.custom_op("torchane::vocabulary_gradient", mutates_args=())
def vocabulary_gradient(grad_output: Tensor, x: Tensor, weight: Tensor, code: Tensor, taken: Tensor, rest: Tensor) -> Tensor:
    """The gradient in the scores of a slice, (T, V) of the weight's dtype. grad_output, taken, rest: (T, 1), as vocabulary_rows and
    vocabulary_loss give them; others as in vocabulary_scores."""
    return _gradient(grad_output, _scores(x, weight), code, taken, rest).to(weight.dtype)


@vocabulary_gradient.register_fake
def _(grad_output: Tensor, x: Tensor, weight: Tensor, code: Tensor, taken: Tensor, rest: Tensor) -> Tensor:
    return weight.new_empty((x.shape[0], weight.shape[0]))


@torch.library.custom_op("torchane::vocabulary_gradient_of", mutates_args=())
def vocabulary_gradient_of(grad_output: Tensor, scores: Tensor, code: Tensor, taken: Tensor, rest: Tensor) -> Tensor:
    """As vocabulary_gradient, of scores (T, V) that were kept, and in their dtype."""
    return _gradient(grad_output, scores, code, taken, rest)


@vocabulary_gradient_of.register_fake
def _(grad_output: Tensor, scores: Tensor, code: Tensor, taken: Tensor, rest: Tensor) -> Tensor:
    return torch.empty_like(scores)


def _scores(x: Tensor, weight: Tensor) -> Tensor:
    """All of them, (T, V)."""
    wide = _wide(x)
    return x.to(wide) @ weight.to(wide).T


def _targets(scores: Tensor, code: Tensor) -> Tensor:
    """(T, V): 1 at the target, 0 elsewhere."""
    return (code.to(scores.dtype) @ code_matrix(scores.shape[1]).to(scores.dtype) - (CODE - 1)).clamp_(min=0)


def _read(scores: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a loss needs of them."""
    is_target = _targets(scores, code)
    others = scores + is_target * LEFT_OUT
    top = others.amax(1, keepdim=True)
    return top, (others - top).exp().sum(1, keepdim=True), (scores + (1 - is_target) * LEFT_OUT).amax(1, keepdim=True)


def _gradient(grad_output: Tensor, scores: Tensor, code: Tensor, taken: Tensor, rest: Tensor) -> Tensor:
    is_target = _targets(scores, code)
    exponentials = (scores + is_target * LEFT_OUT - taken).exp()
    return (exponentials - is_target * rest) * grad_output


def _wide(x: Tensor) -> torch.dtype:
    """What the host computes in: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def _macs_formula(x_place: int):  # type: ignore[no-untyped-def]
    def flops(*shapes: object, out_shape: object = None, **_: object) -> int:
        (rows, inner), (size, _) = shapes[x_place], shapes[x_place + 1]  # type: ignore[misc]
        return 2 * rows * size * (inner + CODE)

    return flops


def _code_formula(_: object, scores: tuple[int, int], *__: object, out_shape: object = None, **___: object) -> int:
    return 2 * scores[0] * scores[1] * CODE


register_flop_formula(torch.ops.torchane.vocabulary_scores)(_macs_formula(0))
register_flop_formula(torch.ops.torchane.vocabulary_kept_scores)(_macs_formula(0))
register_flop_formula(torch.ops.torchane.vocabulary_gradient)(_macs_formula(1))
register_flop_formula(torch.ops.torchane.vocabulary_gradient_of)(_code_formula)
