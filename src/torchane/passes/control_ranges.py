"""Keep every product inside the engine's window, whatever the magnitude of what it multiplies.

    z = matmul(w, y)        ->    m = slice(multipliers, row 0)            # 2^k, decided at run time
                                  z = matmul(mul(w, m), y)                 # stored: true z * 2^(k + exponents of w and y)
    s = softmax(z)                s = softmax(mul(z, slice(.., row 1)))    # what needs true numbers gets them

A value is stored as its true number times a power of two, whose exponent is a sum of variables (abi/ranges.py): an
input's own, and one per product. A product rounds to multiples of 2^-16 and overflows at 2^15, so only the
scale of both operands together counts: the smaller operand is multiplied. Where two values are added that lie under
different powers, the one that costs less is moved; a product that is read by that sum alone is computed
at the right place to begin with. Ops that are no multiplication (exp, sigmoid, softmax, pow, a constant added) read
true numbers.
The powers come in through a port of their own, so nothing is compiled again when they move. The largest magnitudes of
products leave through another: nobody can look inside a program on an engine.
Numbers move only by what falls below or above fp16's range on the way.
"""

from dataclasses import replace

import numpy as np

from torchane.abi.numbers import FP16_SMALLEST
from torchane.abi.ranges import SUM_END, UNSCALED, VALUE_END, Bound, Form, Inputs, Measure, Ranges, port_type
from torchane.chips import Chip
from torchane.mil.build import Builder
from torchane.mil.ir import Arg, Literal, Op, Program, Var
from torchane.passes.range_statistics import write_statistics
from torchane.passes.rewrite import shape_of

#: Largest magnitudes, as powers of two. Sums of products have 4 doublings to the end of their range, for partial sums and
#: for the next step: thousands of products, each far smaller than the largest sum, want to lie as high as they can. What
#: is multiplied element by element is brought down first. Sums of stored values and multiplied operands must
#: stay below fp16's own end.
PRODUCT, ELEMENTS, CHAIN, OPERAND = 11, 4, 9, 13
#: An operand this many times smaller than the result is multiplied for nearly nothing.
SMALL = 8

MOVES = frozenset({"reshape", "transpose", "identity", "squeeze", "expand_dims", "cast"})
PASSING = MOVES | {"slice_by_size", "relu", "abs", "reduce_max"}
#: Ops that give a multiple of their result for a multiple of their operand, but no bound on it.
LINEAR = PASSING | {"reduce_sum", "reduce_mean"}
SUMS = frozenset({"add", "sub", "maximum", "minimum"})
PRODUCTS = {"matmul": ("x", "y"), "conv": ("x", "weight")}
BOUNDED = frozenset({"softmax", "sigmoid", "tanh"})  # by 1, so not worth measuring

_PLACEHOLDER = Var("range_multipliers", port_type(1 << 16))


def control_ranges(program: Program, chip: Chip | None = None, inputs: Inputs | None = None) -> tuple[Program, Ranges]:
    """The program with a port for multipliers as its last input and one for statistics as its last output, and what the
    runtime must know."""
    return _Control(program, inputs or Inputs()).run(chip)


class _Control:
    def __init__(self, program: Program, inputs: Inputs):
        self.program = program
        self.uses = program.main.uses
        self.b = Builder([*program.names, _PLACEHOLDER.name])
        self.now: dict[Var, Var] = {}  # what stands for a value of the old program from here on
        self.forms: dict[Var, Form] = {}
        self.measured: dict[Var, int] = {}
        self.measures: list[tuple[str, int, Var]] = []
        self.bounds: list[Bound] = []
        self.multipliers: list[Form] = []
        self.rows: list[Var] = []
        self.small: set[Var] = set()
        self.variables: list[str] = []
        self.known: dict[str, Form] = {}
        self.private: dict[Var, str] = {}
        self.scaled_already: dict[tuple[Var, Form], Var] = {}
        self.leaves_as = self._leaving()
        self.static = {var for var in program.inputs if var.name in inputs.static}
        self.gradients = {var for var in program.inputs if var.name in inputs.gradients}
        self.constants = {var for var in program.inputs if var.name in inputs.constants}
        for index, var in enumerate(program.inputs):
            self.forms[var] = UNSCALED if var.name in inputs.unscaled else Form.var(f"i{index}")
            self.measured[var] = self._measure("input", index, var)

    def run(self, chip: Chip | None) -> tuple[Program, Ranges]:
        for op in self.program.ops:
            self._op(op)
        outputs = [self.now.get(var, var) for var in self.program.outputs]
        for index, var in enumerate(outputs):
            if var not in self.measured and var not in self.small:
                self._bound(self._measure("output", index, var), self._form(var), CHAIN, VALUE_END, var.name)
        ops = self.b.ops
        inputs, results = list(self.program.inputs), list(outputs)
        if self.multipliers:
            port = Var(_PLACEHOLDER.name, port_type(len(self.multipliers)))
            inputs.append(port)
            ops = [op.reading({_PLACEHOLDER: port}) for op in ops]
        if self.rows:
            self.b.ops = ops
            results.append(write_statistics(self.b, self.rows, chip))
            ops = self.b.ops
        after = self.program.with_(inputs=tuple(inputs), ops=tuple(ops), outputs=tuple(results))
        return after, self._ranges(outputs)

    def _ranges(self, outputs: list[Var]) -> Ranges:
        def form_of(place: str, index: int, var: Var) -> Form:
            return self._form(outputs[index] if place == "output" else var)

        free = [name for name in self.variables if name not in self.known]
        return Ranges(
            variables=tuple(free),
            multipliers=tuple(form.replacing(self.known) for form in self.multipliers),
            outputs=tuple(self._form(var) for var in outputs),
            measures=tuple(Measure(place, index, form_of(place, index, var)) for place, index, var in self.measures),  # type: ignore[arg-type]
            bounds=tuple(replace(one, form=one.form.replacing(self.known), knob=self._last(one.form)) for one in self.bounds),
            rows=len(self.rows),
        )

    # --- the ops --------------------------------------------------------------------------------------------------

    def _op(self, op: Op) -> None:
        op = op.reading(self.now)
        kind = op.kind.name
        if any(var in self.gradients for var in op.inputs):
            self.gradients.update(op.outputs)
        if kind in MOVES and any(var in self.static for var in op.inputs):
            self.static.update(op.outputs)
        if kind in MOVES and any(var in self.constants for var in op.inputs):
            self.constants.update(op.outputs)
        if kind in PRODUCTS and op.args.get("bias") is None:
            self._product(op)
        elif kind in SUMS:
            self._sum(op)
        elif kind == "mul":
            op = self._placeable(self._normalised(op))
            self._emit(op, self._form(op.args["x"]) + self._form(op.args["y"]))
        elif kind == "real_div":
            self._emit(op, self._form(op.args["x"]) - self._form(op.args["y"]))
        elif kind in LINEAR:
            x = op.args["x"]
            self._emit(op, self._form(x))
            if isinstance(x, Var) and kind in PASSING and x in self.measured:
                self.measured[op.output] = self.measured[x]
            if isinstance(x, Var) and kind in PASSING and x in self.small:
                self.small.add(op.output)
            if isinstance(x, Var) and kind in MOVES and x in self.private and self._read_once(op.output):
                self.private[op.output] = self.private[x]
        else:
            op = op.reading({var: self._true(var) for var in op.inputs if self._form(var) != UNSCALED})
            for out in op.outputs:
                self.forms[out] = UNSCALED
                if kind in BOUNDED:
                    self.small.add(out)
            self.b.ops.append(op)

    def _normalised(self, op: Op) -> Op:
        """x * r, r a small value that lies as it is, as the reciprocal root of a norm: what comes of it is of the order
        of 1, so r is multiplied by what brings it there. Not so for gradients, which r only passes on."""
        for key, other in ("xy", "yx"):
            small, large = op.args[key], op.args[other]
            if (
                isinstance(small, Var)
                and isinstance(large, Var)
                and self._form(small) == UNSCALED != self._form(large)
                and _size(small) * SMALL <= _size(large)
                and small not in self.static
                and not {small, large} & self.gradients
            ):
                return replace(op, args={**op.args, key: self._scaled(small, -self._form(large))})
        return op

    def _placeable(self, op: Op) -> Op:
        """A product of two values from elsewhere, element by element, that leaves or goes into sums of products: nothing in
        this program places it, so its smaller factor is multiplied."""
        forms = [self._form(op.args[key]) for key in "xy"]
        goes_far = op.output in self.leaves_as or any(reader.kind.name in PRODUCTS for reader in self._readers(op.output))
        if not goes_far or UNSCALED in (*forms, forms[0] + forms[1]) or self._last(forms[0] + forms[1]) is not None:
            return op
        key = min("yx", key=lambda one: _size(op.args[one]))
        return replace(op, args={**op.args, key: self._scaled(op.args[key], self._variable())})

    def _product(self, op: Op) -> None:
        keys = PRODUCTS[op.kind.name]
        sides = [op.args[key] for key in keys]
        constant = next((side for side in sides if isinstance(side, Literal)), None)
        if constant is not None and _only_selects(op, constant):
            moved = next(side for side in sides if side is not constant)
            self._emit(op, self._form(moved))
            if isinstance(moved, Var) and moved in self.measured:
                self.measured[op.output] = self.measured[moved]
            return
        for side in sides:
            if isinstance(side, Var) and side not in self.measured and side not in self.small:
                self._bound(self._measure_value(side), self._form(side), CHAIN, VALUE_END, side.name)
        own = self._variable()
        factor = own - self._form(sides[0]) - self._form(sides[1])
        key, side = min(zip(keys, sides), key=lambda one: (isinstance(one[1], Literal) or one[1] in self.constants, _size(one[1])))
        scaled = self._scaled(side, factor)
        if isinstance(side, Var) and side in self.measured:
            self._bound(self.measured[side], self._form(side) + factor, OPERAND, VALUE_END, f"{op.output.name}, operand {key}")
        self._emit(replace(op, args={**op.args, key: scaled}), own)
        guess = (*(self.measured.get(side, -1) for side in sides), _inner(op).bit_length() // 2)  # type: ignore[arg-type]
        self._bound(self._measure_value(op.output), own, PRODUCT, SUM_END, op.output.name, guess)
        if self._read_once(op.output):
            self.private[op.output] = own.terms[0][0]
        self._place(op.output)

    def _place(self, var: Var) -> None:
        """Brings sums of products, which lie high in the window, to where they may be multiplied element by element."""
        if not self._is_read_by_elements(var) or self._goes_into_a_sum_of_products(var):
            return
        place = self._variable()
        placed = self._scaled(var, place - self._form(var))
        self._bound(self._measure_value(var), place, ELEMENTS, VALUE_END, f"{var.name}, placed")
        self.private.pop(var, None)
        self.now[var] = placed

    def _sum(self, op: Op) -> None:
        x, y = op.args["x"], op.args["y"]
        if any(_is_scaleless(op, side) for side in (x, y)):
            other = y if _is_scaleless(op, x) else x
            self._emit(op, self._form(other))
            if isinstance(other, Var) and other in self.measured:
                self.measured[op.output] = self.measured[other]
            return
        wants_truth = isinstance(x, Literal) or isinstance(y, Literal) or self._is_read_as_truth(op.output)
        if wants_truth:
            x, y = (self._true(side) if isinstance(side, Var) else side for side in (x, y))
            self._emit(replace(op, args={**op.args, "x": x, "y": y}), UNSCALED)
            return
        assert isinstance(x, Var) and isinstance(y, Var)
        x, y = self._aligned(x, y)
        shared = self.private.get(x) or self.private.get(y)
        both = self._is_sum_of_products(op.output)
        self._emit(replace(op, args={**op.args, "x": x, "y": y}), self._form(x))
        if both:
            self._bound(self._measure_value(op.output), self._form(x), PRODUCT, VALUE_END, op.output.name)
            if shared is not None and self._read_once(op.output):
                self.private[op.output] = shared
            self._place(op.output)

    def _aligned(self, x: Var, y: Var) -> tuple[Var, Var]:
        """Both under one power of two."""
        have = {side: self._form(side) for side in (x, y)}
        if have[x] == have[y]:
            return x, y
        for side, other in ((y, x), (x, y)):  # a product that only this sum reads is computed where the other lies
            own = self.private.get(side)
            if own is not None and self._knob(have[other]) is not None and have[other].coefficient(own) == 0:
                self.known[own] = have[other] - have[side].without(own)
                return x, y
        if all(self._knob(form) is None for form in have.values()):
            place = self._variable()
            for side in (x, y):
                self._bound_moved(side, place)
            return self._scaled(x, place - have[x]), self._scaled(y, place - have[y])
        moving = self._cheaper(x, y)
        staying = y if moving is x else x
        self._bound_moved(moving, have[staying])
        moved = self._sunk(moving, have[staying] - have[moving])
        return (moved, y) if moving is x else (x, moved)

    def _bound_moved(self, side: Var, place: Form) -> None:
        """What is moved for a sum must fit where it goes."""
        if side in self.measured:
            self._bound(self.measured[side], place, ELEMENTS, VALUE_END, f"{side.name}, moved for a sum")

    def _cheaper(self, x: Var, y: Var) -> Var:
        """Which of two to multiply: the one that the runtime cannot place otherwise, then the one that costs less."""
        movable = [side for side in (x, y) if self._knob(self._form(side)) is None]
        if len(movable) == 1:
            return movable[0]
        return min((y, x), key=lambda side: min(_size(side), _size(self._small_source(side) or side)))

    # --- forms and multipliers ------------------------------------------------------------------------------------

    def _variable(self) -> Form:
        self.variables.append(f"v{len(self.variables)}")
        return Form.var(self.variables[-1])

    def _form(self, arg: Arg) -> Form:
        return self.forms[arg].replacing(self.known) if isinstance(arg, Var) else UNSCALED

    def _knob(self, form: Form) -> str | None:
        """A variable of this program that moves the form one to one."""
        return next((name for name, count in form.replacing(self.known).terms if count == 1 and name.startswith("v")), None)

    def _last(self, form: Form) -> str | None:
        """The youngest variable of this program in a form: the one that the runtime chooses when it knows the others."""
        own = [name for name, _ in form.replacing(self.known).terms if name.startswith("v")]
        return max(own, key=lambda name: int(name[1:]), default=None)

    def _emit(self, op: Op, form: Form) -> None:
        self.b.ops.append(op)
        self.forms[op.output] = form

    def _true(self, var: Var) -> Var:
        """The value under exponent 0, for this reader and all later ones."""
        form = self._form(var)
        if form == UNSCALED:
            return var
        true = self._scaled(var, -form)
        for old, new in [*self.now.items(), (var, var)]:
            if new == var:
                self.now[old] = true
        return true

    def _scaled(self, side: Arg, factor: Form) -> Var:
        factor = factor.replacing(self.known)
        if factor == UNSCALED:
            return side  # type: ignore[return-value]
        key = (side, factor)
        if not isinstance(side, Var) or key not in self.scaled_already:
            scaled = self._multiplied(side, factor)
            if not isinstance(side, Var):
                return scaled
            self.scaled_already[key] = scaled
        return self.scaled_already[key]

    def _multiplied(self, side: Arg, factor: Form) -> Var:
        row = len(self.multipliers)
        self.multipliers.append(factor)
        power = self.b.slice_by_size(x=_PLACEHOLDER, begin=(0, row, 0, 0), size=(1, 1, 1, 1), name=f"multiplier_{row}")
        name = side.name if isinstance(side, Var) else "constant"
        scaled = self.b.mul(x=side, y=power, name=f"{name}_scaled")
        if side in self.gradients:
            self.gradients.add(scaled)
        self.forms[scaled] = self._form(side) + factor
        if isinstance(side, Var) and side in self.measured:
            self.measured[scaled] = self.measured[side]
        return scaled

    def _small_source(self, var: Var) -> Var | None:
        """The small factor of the product, element by element, that nothing but one reader takes `var` for."""
        producer = next((op for op in reversed(self.b.ops) if var in op.outputs), None)
        if producer is None or not self._read_once(var) or var in self.measured:
            return None
        if producer.kind.name in MOVES:
            return self._small_source(producer.inputs[0])
        if producer.kind.name != "mul":
            return None
        small = min(producer.inputs, key=_size)
        return small if _size(small) * SMALL <= _size(var) and producer.inputs.count(small) == 1 else None

    def _sunk(self, var: Var, factor: Form) -> Var:
        """`var` times 2^factor: its small factor is multiplied instead, where it has one."""
        small = self._small_source(var)
        if small is None:
            return self._scaled(var, factor)
        chain = [var]
        while True:
            producer = next(op for op in reversed(self.b.ops) if chain[-1] in op.outputs)
            if producer.kind.name == "mul":
                break
            chain.append(producer.inputs[0])
        start = len(self.b.ops)
        scaled = self._multiplied(small, factor)
        added = self.b.ops[start:]
        del self.b.ops[start:]
        at = next(i for i, op in enumerate(self.b.ops) if op is producer)
        self.b.ops[at : at + 1] = [*added, producer.reading({small: scaled})]
        for value in chain:
            self.forms[value] = self.forms[value] + factor
        return var

    # --- what is measured -----------------------------------------------------------------------------------------

    def _measure(self, place: str, index: int, var: Var) -> int:
        self.measures.append((place, index, var))
        return len(self.measures) - 1

    def _measure_value(self, var: Var) -> int:
        """Reads it where it leaves, if it does; else through the statistics port."""
        if var not in self.measured:
            if var in self.leaves_as:
                self.measured[var] = self._measure("output", self.leaves_as[var], var)
            else:
                self.measured[var] = self._measure("row", len(self.rows), var)
                self.rows.append(var)
        return self.measured[var]

    def _bound(self, measure: int, form: Form, target: int, end: int, what: str, guess: tuple[int, int, int] | None = None) -> None:
        self.bounds.append(Bound(measure, form, target, end, None, what, guess))

    # --- what the old program says --------------------------------------------------------------------------------

    def _leaving(self) -> dict[Var, int]:
        """Values that leave as an output, moved at most."""
        producer = self.program.main.producer
        found: dict[Var, int] = {}
        for index, var in enumerate(self.program.outputs):
            while var not in found:
                found[var] = index
                op = producer.get(var)
                if op is None or op.kind.name not in MOVES or not op.inputs:  # a constant may leave
                    break
                var = op.inputs[0]
        return found

    def _read_once(self, var: Var) -> bool:
        readers = self.uses.get(var, ())
        return var not in self.program.outputs and len(readers) == 1 and readers[0].inputs.count(var) == 1

    def _readers(self, var: Var) -> list[Op]:
        """Those of the value, moved or not."""
        found = []
        for op in self.uses.get(var, ()):
            found += self._readers(op.output) if op.kind.name in MOVES else [op]
        return found

    def _is_sum_of_products(self, var: Var) -> bool:
        """Of products that nothing else reads."""
        op = self.program.main.producer.get(var)
        if op is None:
            return False
        if op.kind.name in MOVES:
            return bool(op.inputs) and self._only_feeds(op.inputs[0])
        if op.kind.name in ("add", "sub"):
            return all(isinstance(arg, Var) and self._only_feeds(arg) for arg in (op.args["x"], op.args["y"]))
        return op.kind.name in PRODUCTS

    def _only_feeds(self, var: Var) -> bool:
        return self._read_once(var) and self._is_sum_of_products(var)

    def _goes_into_a_sum_of_products(self, var: Var) -> bool:
        if not self._read_once(var):
            return False
        (op,) = self.uses[var]
        if op.kind.name in MOVES:
            return self._goes_into_a_sum_of_products(op.output)
        return op.kind.name in ("add", "sub") and self._is_sum_of_products(op.output)

    def _is_read_as_truth(self, var: Var) -> bool:
        known = {*LINEAR, *SUMS, *PRODUCTS, "mul", "real_div"}
        return any(
            op.kind.name not in known
            or (op.kind.name in SUMS and any(isinstance(arg, Literal) and not _is_scaleless(op, arg) for arg in op.args.values()))
            for op in self._readers(var)
        )

    def _is_read_by_elements(self, var: Var) -> bool:
        return not self._is_read_as_truth(var) and any(op.kind.name not in PRODUCTS for op in self._readers(var))


def _inner(op: Op) -> int:
    """How many products each of its sums has."""
    if op.kind.name == "conv":
        return int(np.prod(shape_of(op.args["weight"])[1:]))
    return shape_of(op.args["x"])[-2 if _flag(op, "transpose_x") else -1]


def _flag(op: Op, key: str) -> bool:
    flag = op.args.get(key)
    return isinstance(flag, Literal) and bool(flag.python())


def _size(arg: Arg) -> int:
    return int(np.prod(shape_of(arg)))


def _is_scaleless(op: Op, arg: Arg) -> bool:
    """A constant that means the same under any power of two: 0, and the least fp16 number that stands beside 0 in a
    comparison (lower_bools: p / max(p, 2^-24))."""
    if not isinstance(arg, Literal) or not isinstance(arg.value, np.ndarray):
        return False
    return not arg.value.any() or (op.kind.name == "maximum" and bool((arg.value == FP16_SMALLEST).all()))


def _only_selects(op: Op, constant: Literal) -> bool:
    """Every result is one of the other operand's numbers, its negative, or zero."""
    array = np.asarray(constant.value, np.float64)
    if not np.isin(array, (-1.0, 0.0, 1.0)).all():
        return False
    if op.kind.name == "conv":
        return bool((np.abs(array).reshape(array.shape[0], -1).sum(-1) <= 1).all())
    is_left = op.args["x"] is constant
    transposed = _flag(op, "transpose_x" if is_left else "transpose_y")
    inner = -1 if is_left != transposed else -2
    return bool((np.abs(array).sum(inner) <= 1).all())
