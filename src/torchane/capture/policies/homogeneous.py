"""Which ops give 2^k times their result for 2^k times the gradients that they are given.

    op              terms                      kept apart
    add(x, y)       x + y                      g + h, g + 0: yes; g + x: no
    mul(x, y)       x * y                      g * x: yes; g * h: no, that is 4^k
    clamp(x, a, b)  x, a, b                    clamp(g, min=0): yes; clamp(g, -0.1, 0.1): no
    addmm(b, x, y)  b + x * y

An op's result is made of terms: each is a product of the arguments that are named in it. The op takes gradients if every term
has exactly one of them as a factor, or is zero; arguments that no term names (divisors, saved activations, conditions)
must be none. What the table does not have is taken for a function that no scale passes through.
"""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

import torchane.capture.rules.decompose  # noqa: F401  it defines two ops of ours
from torchane.capture.graph import VIEWS
from torchane.capture.torch_private import OpOverloadPacket, unset_fake_temporarily

aten = torch.ops.aten

Terms = tuple[tuple[str, ...], ...]

_X: Terms = (("self",),)
_GRAD: Terms = (("grad_output",),)
_GRAD_OUT: Terms = (("grad_out",),)

#: By overload packet. Maxima and minima are no sums, but count as such: max(2^k g, 2^k h) = 2^k max(g, h).
#: Not here though it is one: the 2-norm, whose squares leave fp16.
TERMS: Mapping[OpOverloadPacket, Terms] = MappingProxyType({
    **{view.overloadpacket: _X for view in VIEWS},
    **dict.fromkeys((
        aten._reshape_alias, aten.view_copy, aten.contiguous, aten.resolve_conj, aten._to_copy, aten.to, aten.slice, aten.select,
        aten.split, aten.split_with_sizes, aten.unbind, aten.unfold, aten.flip, aten.roll, aten.repeat, aten.tril, aten.triu,
        aten.neg, aten.sum, aten.mean, aten.cumsum, aten.abs, aten.relu, aten.leaky_relu, aten.amax, aten.amin, aten.max, aten.min,
        aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.max_pool2d_with_indices, aten.upsample_bilinear2d, aten.upsample_nearest2d,
        aten.div,
    ), _X),
    **dict.fromkeys((
        aten.slice_backward, aten.select_backward, aten.threshold_backward, aten.leaky_relu_backward, aten.sigmoid_backward,
        aten.tanh_backward, aten.silu_backward, aten.gelu_backward, aten.elu_backward, aten.hardtanh_backward,
        aten.hardsigmoid_backward, aten.hardswish_backward, aten.softplus_backward, aten._softmax_backward_data,
        aten._log_softmax_backward_data, aten.avg_pool2d_backward, aten._adaptive_avg_pool2d_backward, aten.convolution_backward,
        aten.upsample_bilinear2d_backward, aten.upsample_nearest2d_backward, aten.native_dropout_backward,
    ), _GRAD),
    **dict.fromkeys((
        aten._fused_rms_norm_backward, aten.native_layer_norm_backward, aten.native_group_norm_backward, aten.native_batch_norm_backward,
    ), _GRAD_OUT),
    torch.ops.torchane.max_pool2d_backward: (("grad",),),
    **dict.fromkeys((torch.ops.torchane.vocabulary_rows, torch.ops.torchane.vocabulary_gradient, torch.ops.torchane.vocabulary_gradient_of), _GRAD),
    **dict.fromkeys((aten.add, aten.sub, aten.rsub, aten.maximum, aten.minimum, aten.where), (("self",), ("other",))),
    aten.mul: (("self", "other"),),
    **dict.fromkeys((aten.mm, aten.bmm), (("self", "mat2"),)),
    aten.mv: (("self", "vec"),),
    aten.dot: (("self", "tensor"),),
    aten.addmm: (("self",), ("mat1", "mat2")),
    aten.baddbmm: (("self",), ("batch1", "batch2")),
    aten.addmv: (("self",), ("mat", "vec")),
    aten.convolution: (("input", "weight"), ("bias",)),
    aten.addcmul: (("self",), ("tensor1", "tensor2")),
    aten.addcdiv: (("self",), ("tensor1",)),
    aten.lerp: (("self",), ("end",)),
    aten.clamp: (("self",), ("min",), ("max",)),
    aten.clamp_min: (("self",), ("min",)),
    aten.clamp_max: (("self",), ("max",)),
    aten.masked_fill: (("self",), ("value",)),
    aten.constant_pad_nd: (("self",), ("value",)),
    **dict.fromkeys((aten.cat, aten.stack), (("tensors",),)),
    **dict.fromkeys((aten.slice_scatter, aten.select_scatter), (("self",), ("src",))),
    aten.copy: (("src",),),
})  # fmt: skip

#: Arguments that give a result its shape alone.
_OVERWRITTEN: Mapping[OpOverloadPacket, frozenset[str]] = {aten.copy: frozenset({"self"})}
#: Give the same whatever numbers they are given.
CREATORS = frozenset({
    aten.full, aten.zeros, aten.ones, aten.scalar_tensor, aten.full_like, aten.zeros_like, aten.ones_like, aten.fill, aten.new_full,
    aten.new_zeros, aten.new_ones,
})  # fmt: skip
_ZEROS = frozenset({aten.zeros, aten.zeros_like, aten.new_zeros})
#: What they make of zeros is zeros.
_KEEP_ZEROS = frozenset({*(view.overloadpacket for view in VIEWS), aten._to_copy, aten.slice, aten.select, aten.repeat, aten.neg})


def packet_of(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None)


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen call by their names, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return {**defaults, **dict(zip((argument.name for argument in schema), node.args)), **node.kwargs}


def _is_zero(value: torch.Tensor) -> bool:
    with unset_fake_temporarily():  # a constant of the model is no fake tensor, also while AOTAutograd traces
        return not value.any()


def zeros_in(graph: fx.Graph) -> frozenset[fx.Node]:
    """The nodes that are seen to be zero everywhere: those are 2^k times themselves."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        packet = packet_of(node)
        if node.op == "get_attr":
            value = getattr(graph.owning_module, str(node.target), None)
            is_zero = isinstance(value, torch.Tensor) and value.numel() <= 1 << 16 and _is_zero(value)
        elif packet in CREATORS:
            given = arguments(node)
            is_zero = packet in _ZEROS or given.get("fill_value", given.get("value", given.get("s"))) == 0
        else:
            kept = node.args[1:2] if packet is aten.copy else node.args[:1] if packet in _KEEP_ZEROS else ()
            is_zero = any(isinstance(source, fx.Node) and source in found for source in kept)
        if is_zero:
            found.add(node)
    return frozenset(found)


def is_homogeneous(node: fx.Node, scaled: Callable[[Any], bool], zeros: Collection[fx.Node]) -> bool:
    """Whether the call gives 2^k times its result where the arguments that are `scaled` are multiplied by 2^k."""
    terms = TERMS.get(packet_of(node))
    if terms is None:
        return False
    given = arguments(node)
    named = {name for term in terms for name in term} | _OVERWRITTEN.get(packet_of(node), frozenset())
    if any(scaled(arg) for name, value in given.items() if name not in named for arg in _items(value)):
        return False
    if packet_of(node) is aten.div and given.get("rounding_mode") is not None:
        return False

    def is_zero(arg: Any) -> bool:
        return arg in zeros if isinstance(arg, fx.Node) else not arg  # absent, or the number 0

    for term in terms:
        factors = [given[name] for name in term if name in given]
        if len(term) == 1:  # a list stands for as many terms
            if not all(scaled(arg) or is_zero(arg) for arg in _items(factors[0] if factors else None)):
                return False
        elif sum(map(scaled, factors)) != 1 and not any(map(is_zero, factors)):
            return False
    return True


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
