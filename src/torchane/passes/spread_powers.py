"""Multiply in an order in which no intermediate leaves fp16's range.

    p = pow(r, 3)                          # r = 1 / rms, up to a few hundred: r^3 overflows
    q = mul(mul(a, -0.5), p)               # a (.., 1): sum(dy * w * x), in proportion to the row's length n
    y = mul(real_div(q, n), mul(x, 2))     # x (.., n)
                  ->    y = mul(mul(mul(mul(a, -1 / n), r), r), mul(x, r))
                  ->    y = mul(mul(mul(sum(dy * w * mul(x, r)), -1 / n), r), mul(x, r))
The backward of an RMSNorm written by hand. A product of several factors with one of them repeated is
taken apart: its constants become one; small factors meet it and the powers one at a time; one power goes
to a factor of full size, where x * r is the normalised x, which the rest of the gradient needs anyway. And one
goes under the sum, if that is a sum over x: a sum of dy * x leaves fp16 where x is large.
A power of 2, 3 or 4 that stands alone becomes products too: pow of a negative number is not to be trusted.
Constants whose product fp16 does not hold in full stay apart, and their product with them.

Nothing moves in exact numbers but the constants' product, rounded once; in fp16 a product rounds in another order.
"""

from collections import Counter
from dataclasses import dataclass, field

from torchane.abi.numbers import FP16_MAX, FP16_SMALLEST_NORMAL
from torchane.mil.build import Builder
from torchane.mil.ir import Literal, Op, Program, Var
from torchane.passes.rewrite import Rule, rewrite, scalar, shape_of

#: The exponents that become products.
_POWERS = {2.0, 3.0, 4.0}


def spread_powers(program: Program) -> Program:
    main = program.main
    outputs = set(program.outputs)
    inner = {
        op.output
        for op in program.ops
        if _is_product(op) and op.output not in outputs and _only_factor_of(op.output, main.uses.get(op.output, ()))
    }
    met = {frozenset(op.inputs) for op in program.ops if op.kind.name == "mul"}

    def spread(b: Builder, op: Op) -> Var | None:
        if op.output in inner or not _is_product(op):
            return None
        product = _Product(producer=main.producer)
        product.gather(op, inner, main.producer)
        if not (product.has_power or product.repeats) or not product.constant_fits:
            return None
        result = product.build(b, op.output.shape, met)
        return result if result.type == op.output.type else None

    rules: dict[str, Rule] = dict.fromkeys(("mul", "real_div", "pow"), spread)
    return rewrite(program, rules)


def _is_product(op: Op) -> bool:
    """x * y, x / number, x ^ 2, 3 or 4."""
    if op.kind.name == "mul":
        return True
    number = scalar(op.args["y"]) if op.kind.name in ("real_div", "pow") else None
    if number is None or op.output.shape != op.args["x"].shape:
        return False
    return number in _POWERS if op.kind.name == "pow" else number != 0.0


def _only_factor_of(var: Var, users: tuple[Op, ...]) -> bool:
    """One product reads it, once: taking it apart there computes nothing twice."""
    return len(users) == 1 and _is_product(users[0]) and users[0].kind.name != "pow" and users[0].inputs.count(var) == 1


@dataclass
class _Product:
    constant: float = 1.0
    factors: Counter = field(default_factory=Counter)
    literals: list[Literal] = field(default_factory=list)
    producer: dict[Var, Op] = field(default_factory=dict)
    has_power: bool = False

    @property
    def repeats(self) -> bool:
        """x * x * x, or x * x * y: x * x alone is as good as it gets."""
        most = max(self.factors.values(), default=0)
        return most > 2 or (most == 2 and len(self.factors) + len(self.literals) > 1)

    @property
    def constant_fits(self) -> bool:
        """fp16 holds it in full; one that does not was written in steps on purpose."""
        return FP16_SMALLEST_NORMAL <= abs(self.constant) <= FP16_MAX

    def gather(self, op: Op, inner: set[Var], producer: dict[Var, Op]) -> None:
        """Takes the factors of `op`, and of the products under it that nothing else reads."""
        if op.kind.name == "pow":
            self.has_power = True
            self._take(op.args["x"], int(scalar(op.args["y"])), inner, producer)
            return
        if op.kind.name == "real_div":
            self.constant /= scalar(op.args["y"])
            self._take(op.args["x"], 1, inner, producer)
            return
        self._take(op.args["x"], 1, inner, producer)
        self._take(op.args["y"], 1, inner, producer)

    def _take(self, arg: Var | Literal, power: int, inner: set[Var], producer: dict[Var, Op]) -> None:
        if isinstance(arg, Literal):
            number = scalar(arg)
            if number is not None and arg.rank == 0:
                self.constant *= number**power
            else:
                self.literals.extend([arg] * power)
        elif arg in inner and power == 1:
            self.gather(producer[arg], inner, producer)
        else:
            self.factors[arg] += power

    def _sums_over(self, total: Var | Literal, x: Var) -> bool:
        """total = reduce_sum(u * x), axes kept."""
        op = self.producer.get(total) if isinstance(total, Var) else None
        if op is None or op.kind.name != "reduce_sum" or not op.value("keep_dims", False):
            return False
        inner = self.producer.get(op.args["x"]) if isinstance(op.args["x"], Var) else None
        return inner is not None and inner.kind.name == "mul" and inner.inputs.count(x) == 1 and len(inner.inputs) == 2

    def _sum_over(self, b: Builder, total: Var | Literal, x: Var, normalised: Var) -> Var:
        """The same sum with another value in the place of x."""
        op = self.producer[total]
        inner = self.producer[op.args["x"]]
        other = next(var for var in inner.inputs if var != x)
        return b.reduce_sum(x=b.mul(x=other, y=normalised), axes=op.args["axes"], keep_dims=True)

    def build(self, b: Builder, shape: tuple[int | None, ...], met: set[frozenset[Var]]) -> Var:
        singles = [var for var, power in self.factors.items() if power == 1]
        powers = {var: power for var, power in self.factors.items() if power > 1}
        full = [var for var in singles if shape_of(var) == shape]
        small = [var for var in singles if shape_of(var) != shape]
        chain: list[Var | Literal] = [*small, *self.literals]
        roots: list[Var | Literal] = []
        wide: list[Var | Literal] = []
        for root, power in powers.items():
            partner = None
            if full and shape_of(root) != shape:
                partner = next((var for var in full if frozenset((var, root)) in met), full[-1])
                full.remove(partner)
                normalised = b.mul(x=partner, y=root)
                wide.append(normalised)
                power -= 1
                at = next((i for i, var in enumerate(chain) if power and self._sums_over(var, partner)), None)
                if at is not None:
                    chain[at] = self._sum_over(b, chain[at], partner, normalised)
                    power -= 1
            roots.extend([root] * power)
        # with no small factor to meet them first, powers meet one of full size: dy * r * r, where r * r may leave fp16
        ordered = [*chain, *roots, *wide, *full] if chain or wide else [*full, *roots]
        return _chained(b, ordered, self.constant)


def _chained(b: Builder, factors: list[Var | Literal], constant: float) -> Var:
    """((first * constant) * second) * ..."""
    first, *rest = factors
    result = first if constant == 1.0 else b.mul(x=first, y=constant)
    for factor in rest:
        result = b.mul(x=result, y=factor)
    return result
