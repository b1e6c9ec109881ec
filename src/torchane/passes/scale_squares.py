"""Keep the squares of a row within fp16: divide the row by its size before squaring it.

    s = mul(x, x)                            # x (.., n), up to 65504
    m = reduce_mean(s, [-1])                 a = reduce_sum(|x * 2^-k|)          # about half the mean size; no overflow
    v = add(m, eps)                 ->       i = 2^-j / max(a, floor)
    r = rsqrt(v)                             t = x * i;  q = reduce_sum(t * t)   # 2^-14 .. 2^14
                                             w = i * sqrt(n);  e = w * sqrt(eps)
                                             r = w * rsqrt(q + e * e)
Every norm holds this, and x * x alone is inf from 256 on and zero below 2.4e-4. Any scale near the row's size would
do, and a sum of magnitudes reaches over fp16's whole range where a sum of squares reaches over half of it. i need
not be precise: what it multiplies in q is divided out in w. Rows smaller than the floor are divided by the
floor; it lies where either their squares still fit or eps is all that counts. eps is taken as at least 2^-31.8, so that r
stays below 61200. sqrt gives (q + e * e)^0.5 / w.

The mean of a row that is centred before it is squared (x - mean(x)) is taken of x * i, then divided by i: a plain sum
is inf from a mean of 65504 / n on. A mean of squares that something else reads keeps a plain form.

A row of more than 2^14 numbers of which one outweighs all others together by 2^9 may still overflow; no other does.
Nothing moves in exact numbers but the constants, rounded once. In fp16 the sum of squares is right to 2^-9 for rows of
root mean square 1e-5 to 60000; r itself is subnormal, and right to 2^-9 only, for rows beyond 16384.
"""

import math
from dataclasses import dataclass

from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Op, Program, Var
from torchane.passes.rewrite import Rule, rewrite, scalar, shape_of

#: What eps is at least, where there is one.
_LEAST_EPS = 2.0**-31.8


@dataclass(frozen=True)
class _Row:
    """factor * mean(square(row)) + eps over axes that hold n numbers."""

    row: Var
    axes: tuple[int, ...]
    n: int
    factor: float
    eps: float


def scale_squares(program: Program) -> Program:
    producer = program.main.producer
    rows = {op.output: row for op in program.ops if (row := _row_under(op, producer)) is not None}
    centred = {}  # the mean that is subtracted -> the row it is the mean of, as the square's match describes it
    for row in rows.values():
        mean = _mean_in(row, producer)
        if mean is not None:
            centred.setdefault(mean, row)
    scales: dict[Var, Var] = {}  # centred row -> 1 / size of the row before it was centred

    def root(b: Builder, op: Op) -> Var | None:
        row = rows.get(op.output)
        if row is None:
            return None
        inverse = scales.get(row.row)
        if inverse is None:
            inverse = _inverse_size(b, row.row, row)
        small = b.mul(x=row.row, y=inverse)
        squares = b.reduce_sum(x=b.mul(x=small, y=small), axes=row.axes, keep_dims=True)
        weight = _times(b, inverse, math.sqrt(row.n / row.factor))
        if row.eps > 0:
            guard = b.mul(x=weight, y=math.sqrt(max(row.eps, _LEAST_EPS)))
            squares = b.add(x=squares, y=b.mul(x=guard, y=guard))
        if _exponent(op) < 0:
            result = b.mul(x=weight, y=b.rsqrt(x=squares, epsilon=0.0))
        else:
            result = b.real_div(x=b.sqrt(x=squares), y=weight)
        return result if result.shape == op.output.shape else b.reshape(x=result, shape=shape_of(op.output))

    def mean(b: Builder, op: Op) -> Var | None:
        row = centred.get(op.output)
        if row is None:
            return None
        x = op.args["x"]
        inverse = scales[row.row] = _inverse_size(b, x, row)
        total = b.reduce_sum(x=b.mul(x=x, y=inverse), axes=row.axes, keep_dims=True)
        bits = (row.n - 1).bit_length()
        result = b.real_div(x=_times(b, _times(b, total, 2.0**-bits), 2.0**bits / row.n), y=inverse)
        return result if result.shape == op.output.shape else b.reshape(x=result, shape=shape_of(op.output))

    rules: dict[str, Rule] = dict.fromkeys(("rsqrt", "sqrt", "pow"), root)
    return rewrite(program, {**rules, "reduce_mean": mean})


def _inverse_size(b: Builder, x: Var, row: _Row) -> Var:
    """2^-j over the sum of magnitudes, one number per row: x times it has squares whose sum fits."""
    bits = (row.n - 1).bit_length()
    down = 2.0 ** -(bits + 1)  # the sum of n magnitudes stays below 32768
    shift = min(max(bits - 5, 0), 9)  # one number among n <= 2^14 zeros: its square is 2^(2 bits + 4 - 2 j), at most 2^14
    spread = math.sqrt(row.n / row.factor) * 2.0**-shift
    floor = max(
        2.0**-14,
        spread * 2.0**-15,  # sqrt(n) / size stays finite
        spread * math.sqrt(row.eps) / 128,  # and so does the square of its product with sqrt(eps)
        math.sqrt(row.n) * 2.0 ** (bits - 31 - shift),  # a row whose every magnitude vanished under 2^-k has squares that fit
    )
    size = b.maximum(x=b.mul(x=x, y=down), y=b.mul(x=x, y=-down))
    total = b.reduce_sum(x=size, axes=row.axes, keep_dims=True)
    return b.real_div(x=2.0**-shift, y=b.maximum(x=total, y=floor))


def _times(b: Builder, x: Var, factor: float) -> Var:
    return x if factor == 1.0 else b.mul(x=x, y=factor)


def _exponent(op: Op) -> float | None:
    """0.5 of a square root, -0.5 of a reciprocal one, in every spelling."""
    if op.kind.name == "pow":
        exponent = scalar(op.args["y"])
        return exponent if exponent in (0.5, -0.5) and op.args["x"].shape == op.output.shape else None
    return {"rsqrt": -0.5, "sqrt": 0.5}.get(op.kind.name)


def _row_under(op: Op, producer: dict[Var, Op]) -> _Row | None:
    """What the op takes the root of, if it is a mean or sum of squares, scaled and guarded by numbers."""
    if _exponent(op) is None or not isinstance(op.args["x"], Var):
        return None
    eps = float(op.value("epsilon", 1e-12)) if op.kind.name == "rsqrt" else 0.0
    factor, arg = 1.0, op.args["x"]
    while (made := producer.get(arg)) is not None:
        kind = made.kind.name
        if kind in ("reduce_mean", "reduce_sum"):
            return _of_squares(made, producer, factor, eps)
        if kind == "reshape":
            arg = made.args["x"]
        elif kind in ("add", "mul", "real_div"):
            number, arg = _number_beside(made)
            if number is None or number <= 0 or arg is None or arg.shape != made.output.shape:
                return None
            if kind == "add":
                eps += factor * number
            else:
                factor = factor * number if kind == "mul" else factor / number
        else:
            return None
    return None


def _of_squares(op: Op, producer: dict[Var, Op], factor: float, eps: float) -> _Row | None:
    made = producer.get(op.args["x"]) if isinstance(op.args["x"], Var) else None
    root = None if made is None else _squared(made)
    if root is None:
        return None
    shape = shape_of(root)
    axes = tuple(sorted(axis % len(shape) for axis in op.value("axes", tuple(range(len(shape))))))
    n = math.prod(shape[axis] for axis in axes)
    factor = factor * n if op.kind.name == "reduce_sum" else factor
    # a factor that is far from 1 is no norm's, and its constants would leave fp16
    fits = 2.0**-10 <= n / factor <= 2.0**24 and eps <= 1e3
    return _Row(root, axes, n, factor, eps) if fits else None


def _number_beside(op: Op) -> tuple[float | None, Var | None]:
    """The number and the value of a sum, product or quotient of the two."""
    x, y = op.args["x"], op.args["y"]
    if isinstance(x, Literal) and op.kind.name != "real_div":
        x, y = y, x
    return scalar(y), x if isinstance(x, Var) else None


def _squared(op: Op) -> Var | None:
    """x, if the op is x * x in one of its spellings."""
    x = op.args.get("x")
    if not isinstance(x, Var):
        return None
    is_square = (
        op.kind.name == "square"
        or (op.kind.name == "mul" and op.args["y"] == x)
        or (op.kind.name == "pow" and scalar(op.args["y"]) == 2.0 and x.shape == op.output.shape)
    )
    return x if is_square else None


def _mean_in(row: _Row, producer: dict[Var, Op]) -> Var | None:
    """mean(x), if the row is x - mean(x) over the same axes."""
    made = producer.get(row.row)
    if made is None or made.kind.name != "sub":
        return None
    x, mean = made.args["x"], made.args["y"]
    source = producer.get(mean) if isinstance(mean, Var) else None
    while source is not None and source.kind.name == "reshape" and isinstance(source.args["x"], Var):
        source = producer.get(source.args["x"])
    if source is None or source.kind.name != "reduce_mean" or source.args["x"] != x:
        return None
    rank = len(shape_of(row.row))
    axes = source.value("axes", tuple(range(rank)))
    return source.output if tuple(sorted(axis % rank for axis in axes)) == row.axes else None
