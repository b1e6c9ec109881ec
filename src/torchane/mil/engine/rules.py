"""The rules of the ops that the engine computes in a way of its own, each with its record.

A maker takes the settings and gives the rule; a rule is given an op and its arguments, decoded, and returns
results that are rounded to fp16 when they are stored.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from torchane.errors import CompileError
from torchane.mil.engine import products, tables
from torchane.mil.engine.numbers import rounded
from torchane.mil.engine.records import Evidence, recorded
from torchane.mil.engine.settings import Settings
from torchane.mil.engine.softmax import softmax
from torchane.mil.evaluate import Rule
from torchane.mil.ir import Op
from torchane.mil.ops.activation import per_channel
from torchane.mil.ops.linear import _terms
from torchane.mil.ops.windows import padding, reach, windows

_MAC = "captures of a conv chain and of an attention (49,152 of 49,152 outputs each); 751K on M4 and M6"


def _on_floats(rule: Callable[[Op, Mapping[str, Any]], np.ndarray]) -> Rule:
    """The rule where the result holds floats; an op on integers keeps its NumPy rule."""

    def run(op: Op, args: Mapping[str, Any]) -> tuple[Any, ...]:
        return (rule(op, args),) if op.output.type.dtype.is_float else op.kind.evaluate(args)

    return run


@recorded(
    "matmul", "linear", "einsum",
    says="Products below an exponent sum of -16 are 0, the others rounded to multiples of 2^-16, halves away; exact "
    "sums, an infinity from the moment they reach 32768; a bias is where the sum starts; -0 becomes +0",
    evidence=Evidence.PROVEN, source=_MAC, holds="fp16 operands, M4 and M6; M5 by ANEForge's ceiling",
    unknown="the order of the additions (it matters for overflow only); M1 to M3; einsum and linear are taken as matmul",
)  # fmt: skip
def _matmuls(settings: Settings) -> Rule:
    rule = settings.products

    def run(op: Op, args: Mapping[str, Any]) -> np.ndarray:
        if op.kind.name == "einsum":
            return _einsum(args["values"], args["equation"], settings)
        x = args["x"]
        if op.kind.name == "linear":
            start = 0.0 if args.get("bias") is None else args["bias"]
            return products.sums(x, args["weight"].T, rule, start) if x.ndim > 1 else products.sums(x[None], args["weight"].T, rule, start)[0]
        y = args["y"]
        x = x.swapaxes(-1, -2) if args.get("transpose_x", False) else x
        y = y.swapaxes(-1, -2) if args.get("transpose_y", False) else y
        return products.sums(x, y, rule) if x.ndim > 1 else products.sums(x[None], y, rule)[..., 0, :]

    return _on_floats(run)


def _einsum(values: tuple[np.ndarray, ...], equation: str, settings: Settings) -> np.ndarray:
    """Two operands as one matmul over the letters that both have and the result keeps; others as they come."""
    terms, result = _terms(equation)
    used = [set(term) for term in terms]
    if len(terms) != 2 or any(len(set(term)) != len(term) for term in terms) or not used[0] ^ used[1] <= set(result):
        raise CompileError(
            f"einsum: {equation!r} is not one matrix product of two operands, the only form of which the engine's "
            "arithmetic is known. Take another arithmetic."
        )
    left, right = terms
    batch = [c for c in result if c in left and c in right]
    summed = [c for c in left if c in right and c not in result]
    rows = [c for c in left if c not in right and c in result]
    columns = [c for c in right if c not in left and c in result]
    sizes: dict[str, int] = {}
    for term, value in zip(terms, values):
        for letter, size in zip(term, value.shape):
            sizes[letter] = max(size, sizes.get(letter, 1))

    def grouped(value: np.ndarray, term: str, *groups: list[str]) -> np.ndarray:
        value = np.broadcast_to(value, [sizes[c] for c in term]).transpose([term.index(c) for group in groups for c in group])
        return value.reshape([int(np.prod([sizes[c] for c in group])) for group in groups])

    found = products.sums(
        grouped(values[0], left, batch, rows, summed), grouped(values[1], right, batch, summed, columns), settings.products
    )
    order = [*batch, *rows, *columns]
    return found.reshape([sizes[c] for c in order]).transpose([order.index(c) for c in result])


@recorded(
    "conv",
    says="As matmul: every window against every filter, the bias as the start of the sum",
    evidence=Evidence.PROVEN, source=_MAC + "; bias: 751K, H11",
    holds="1x1 kernels with constant fp16 weights", unknown="larger kernels, groups and strides are expected to follow",
)  # fmt: skip
def _conv(settings: Settings) -> Rule:
    def run(op: Op, args: Mapping[str, Any]) -> np.ndarray:
        x, weight, bias = args["x"], args["weight"], args.get("bias")
        kernel, groups = weight.shape[2:], args.get("groups", 1)
        ones = (1,) * len(kernel)
        strides, dilations = args.get("strides") or ones, args.get("dilations") or ones
        around = padding(args.get("pad_type", "valid"), x.shape[2:], reach(kernel, dilations), strides, args.get("pad"))
        view = windows(np.pad(x, [(0, 0), (0, 0), *around]), kernel, strides, dilations)
        spatial = view.shape[2 : 2 + len(kernel)]
        starts = np.zeros(weight.shape[0]) if bias is None else bias
        parts = []
        for part, filters, start in zip(np.split(view, groups, axis=1), np.split(weight, groups), np.split(starts, groups), strict=True):
            patches = np.moveaxis(part, 1, 1 + len(kernel)).reshape(len(x), int(np.prod(spatial)), -1)
            flat = filters.reshape(len(filters), -1)
            parts.append(products.sums(flat, patches.swapaxes(1, 2), settings.products, start[:, None]))
        return np.concatenate(parts, axis=1).reshape(len(x), len(weight), *spatial)

    return _on_floats(run)


@recorded(
    "softmax",
    says="max; fp16(x - max); e^d by table; fp16 additions in eights and 32s; a reciprocal; fp16(E * r)",
    evidence=Evidence.PROVEN, source="capture of an attention, 49,152 of 49,152 with the observed reciprocals, 38,393 without",
    holds="rows of 64 along the last axis, -0.008 < x - max <= 0 and masked entries; sums with the 137 mantissas seen",
    unknown="the reciprocal elsewhere (nearest fp16 is taken: 122 of the 137 agree), other row lengths (sums of 32 in turn) "
    "and axes, e^d further down",
)  # fmt: skip
def _softmax(settings: Settings) -> Rule:
    return lambda op, args: (softmax(args["x"], settings, args.get("axis", -1)),)


@recorded(
    "scaled_dot_product_attention",
    says="Its parts: product, scale, mask, softmax, product, each leaving fp16",
    evidence=Evidence.PARTLY, source="the capture computes the same by separate ops",
    holds="as its parts", unknown="whether the engine computes the op by these parts",
)  # fmt: skip
def _attention(settings: Settings) -> Rule:
    def run(op: Op, args: Mapping[str, Any]) -> tuple[Any, ...]:
        query, key, mask = args["query"], args["key"], args.get("attn_mask")
        scores = rounded(products.sums(query, key.swapaxes(-1, -2), settings.products), settings.ties)
        scores = rounded(scores * rounded(1 / np.sqrt(query.shape[-1]), settings.ties), settings.ties)
        if mask is not None:
            mask = np.where(mask, 0.0, float(np.finfo(np.float16).min)) if mask.dtype == np.bool_ else mask
            scores = rounded(scores + mask, settings.ties)
        weights = rounded(softmax(scores, settings), settings.ties)
        return (products.sums(weights, args["value"], settings.products),)

    return run


@recorded(
    "exp", "exp2",
    says="2^u, u = fp16(x * fp16(log2 e)), from 33 values 2^(i/32) in fp16, kept to 19 bits after the point",
    evidence=Evidence.PARTLY, source="8,559 values within the captured softmax; 751K's table and sweep; overflow from 11.094 "
    "on (GDE)",
    holds="-0.008 < x <= 0 to the bit; the sweep's largest error on M6, 9.1 steps at 9.703",
    unknown="the other 31 segments to the bit; exp2",
)  # fmt: skip
def _exp(settings: Settings) -> Rule:
    if settings.functions == "nearest":
        return lambda op, args: op.kind.evaluate(args)
    rule = settings.exponential
    return lambda op, args: (tables.exp(args["x"], rule, settings.ties) if op.kind.name == "exp" else tables.exp2(args["x"], rule),)


@recorded(
    "sigmoid", "tanh", "erf", "sin", "sqrt",
    says="A line between two of 33 fp16 values (sqrt: of [0.5, 2], exponents apart); sigmoid keeps 19 bits after the point "
    "and goes on beyond -8 and 8 in lines to 0 at -9.9375 and 1 at 8.3203",
    evidence=Evidence.MEASURED, source="751K: tables of compiled programs for h18g, largest errors of dense sweeps on M6; "
    "the lines of sigmoid: TGR, a program for the M1",
    holds="sigmoid: 254 of 256 columns of a capture; the sweeps' largest errors agree to four digits (sigmoid's in steps, 810.8 "
    "at -9.9375, says that the M6 has the lower line too), but tanh's (1.636e-3 for 1.613e-3)",
    unknown="the last bits of the interpolation and of the lines; erf beyond 2",
)  # fmt: skip
def _tables(settings: Settings) -> Rule:
    return _by_table(settings)


@recorded(
    "gelu", "silu",
    says="A line between two of 33 fp16 values, all modes of gelu alike; h * sigmoid(h) is one silu where nothing else reads "
    "the sigmoid (engine/fusion.py)",
    evidence=Evidence.PARTLY, source="751K: positions of the values in compiled programs for h18g, sweeps on M6; the fusion: a capture of a "
    "feed-forward block, 196,608 of 196,608 with it and none without (Espresso, fwd_ffn_y_seq256)",
    holds="fitted values, by least squares over numbers evenly spaced by exponent, which is our inference: it gives all that "
    "the study says of them (silu just below 0 -1797 * 2^-20, gelu -1595 * 2^-21, silu(0.5) 0.296, gelu(0.25) 0.1436, the largest "
    "errors 1.491e-2 and 6.159e-3)",
    unknown="the last bits of the other values; silu above 8 (taken as x), gelu beyond -4 and 4",
)  # fmt: skip
def _fitted(settings: Settings) -> Rule:
    return _by_table(settings)


def _by_table(settings: Settings) -> Rule:
    def run(op: Op, args: Mapping[str, Any]) -> tuple[Any, ...]:
        function = tables.function(op.kind.name, settings)
        return op.kind.evaluate(args) if function is None else (function(args["x"]),)

    return run


@recorded(
    "log", "rsqrt", "inverse",
    says="As the tables above, of the mantissa of fp16(x + epsilon); the exponent is set apart; log rounds log2 of the "
    "mantissa and the sum with the exponent to fp16 and multiplies by fp16(ln 2)",
    evidence=Evidence.MEASURED, source="751K: tables of compiled programs for h18g; log(0) = -45440: GDE",
    holds="largest errors of dense sweeps on M6, at the same numbers: log 6.638e-3 and 91 steps at 1.004, rsqrt 2.1 at "
    "0.0332, inverse 13.5 at 0.01587", unknown="x <= 0 except log(0); the bits between the sweeps' extremes",
)  # fmt: skip
def _with_epsilon(settings: Settings) -> Rule:
    functions = {"log": tables.log, "rsqrt": tables.rsqrt, "inverse": tables.inverse}

    def run(op: Op, args: Mapping[str, Any]) -> tuple[Any, ...]:
        if settings.functions == "nearest":
            return op.kind.evaluate(args)
        return (functions[op.kind.name](rounded(args["x"] + args.get("epsilon", 0.0), settings.ties)),)

    return run


@recorded(
    "softplus", "softplus_parametric", "reduce_log_sum_exp",
    says="log(1 + e^x) and log(sum e^x) without a shift: softplus is 0 where 1 + e^x reaches 2^15 (x above 10.39), the other "
    "where the sum of e^x overflows fp16 (equal x above 7.62 for 32 of them); below, the exact result",
    evidence=Evidence.PARTLY, source="coremltools #2687: M3 Max, 10.4 at 10.394 and 0 at 10.395, M4 alike; #2690: 11.1 at 7.616 "
    "and 0 at 7.631 for 32 channels; ANEForge #113: M5, 10 at 10 and 0 at 11; QANE: M5 Max",
    holds="where it falls to 0", unknown="the bits below; a sum of e^x that is 0 (taken as log of 0); softplus_parametric is taken "
    "as softplus",
)  # fmt: skip
def _unshifted(settings: Settings) -> Rule:
    def run(op: Op, args: Mapping[str, Any]) -> np.ndarray:
        x = args["x"]
        if op.kind.name == "softplus":
            return tables.softplus(x)
        if op.kind.name == "softplus_parametric":
            return per_channel(args["alpha"], x.ndim) * tables.softplus(x * per_channel(args["beta"], x.ndim))
        axes = args.get("axes")
        return tables.log_sum_exp(x, tuple(range(x.ndim)) if axes is None else tuple(axes), args.get("keep_dims", False))

    return _on_floats(run)


@recorded(
    "reduce_sum", "reduce_mean",
    says="The exact sum, rounded once to fp16 (after the division, for a mean); -0 becomes +0",
    evidence=Evidence.ASSUMED, source="a captured RMSNorm over 768 channels agrees (255 of 256 columns), but is too coarse to tell",
    holds="unknown", unknown="order and width of the sums",
)  # fmt: skip
def _sums(settings: Settings) -> Rule:
    return lambda op, args: tuple(result + 0.0 for result in op.kind.evaluate(args))
