"""Frozen weights, which came in through ports, become constants; products with them 1x1 convolutions where that is the faster form.

    main(x, w) { y = matmul(x = w, y = reshape(x)) }   ->   main(x) { y = reshape(conv(x = x, weight = BLOBFILE(frozen.bin))) }

The text names places in a file that is written when the numbers are known (abi/frozen.py): what is lowered depends on shapes alone. A weight
is made a constant where products and element-wise ops are all that read it; any other stays an input. Products of constants with K channels
first are convolutions; others keep their matmul. The numbers stay the same; sums may be taken in another order.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from torchane import chips
from torchane.abi.frozen import STORED, Constant, blobs_of
from torchane.abi.ports import PortLayout
from torchane.chips import Chip, is_settled
from torchane.errors import CompileError, UsageError
from torchane.mil.build import Builder
from torchane.mil.ir import Arg, Literal, Op, Program, Var, literal
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, TensorType
from torchane.passes.rewrite import shape_of, with_outputs

#: Ops that take a constant in place of either operand.
_ELEMENT_WISE = frozenset({"add", "sub", "mul", "real_div", "maximum", "minimum"})

#: (inner, outer, columns) of a product with a constant -> whether a convolution is no slower than a matmul.
Pays = Callable[[int, int, int], bool]


@dataclass(frozen=True)
class Frozen:
    """What is asked for. names: of ports that hold frozen weights, with the form whose numbers they are to have."""

    names: Mapping[str, str]
    pays: Pays


@dataclass(frozen=True)
class _Use:
    """One way in which a program reads a constant."""

    name: str
    shape: tuple[int, ...]
    is_transposed: bool = False
    form: str = "fp16"


def bake_constants(program: Program, chip: Chip, frozen: Frozen, layouts: Mapping[str, PortLayout]) -> tuple[Program, tuple[Constant, ...]]:
    """The program without the ports of these weights, and its constants in the order of their file."""
    return _Baking(program, chip, frozen, layouts).run()


_LOW_BIT_OPS = {"int8": ("constexpr_blockwise_shift_scale", "constexpr_affine_dequantize"), "int4": ("constexpr_blockwise_shift_scale",)}


def low_bit_op(form: str, chip: Chip) -> str | None:
    """The op by which a chip is known to take weights of a low-bit form with a scale for each row."""
    return next((kind for kind in _LOW_BIT_OPS.get(form, ()) if chip.takes(kind)), None)


def require_form(form: str, chip: Chip) -> None:
    """Raises UsageError for a low-bit form that the chip is not known to take, with the chips that are."""
    if form not in _LOW_BIT_OPS or low_bit_op(form, chip) is not None:
        return
    known = [name for name in chips.names() if low_bit_op(form, chips.load(name)) is not None]
    raise UsageError(
        f'frozen="{form}": {chip.title} is not known to take {form} constants: {chip.op("constexpr_blockwise_shift_scale").why}. '
        f'Known to: {", ".join(known)}; chip="{known[0]}" is one of them, and frozen="fp16" is for all.'
    )


class _Baking:
    def __init__(self, program: Program, chip: Chip, frozen: Frozen, layouts: Mapping[str, PortLayout]):
        self.program = program
        self.chip = chip
        self.frozen = frozen
        self.layouts = layouts
        self.b = Builder(program.names)
        self.views = self._views_of_weights()
        self.uses: dict[_Use, Var] = {}
        self.convolved: dict[Var, Var] = {}  # the result of a convolution by that of the matmul whose place it took

    def run(self) -> tuple[Program, tuple[Constant, ...]]:
        for op in self.program.ops:
            if not self.views.keys() & set(op.outputs):
                self._op(op)
        names = {use.name for use in self.uses}  # a weight that nothing reads stays a port, as any other value would
        positions = {var.name: i for i, var in enumerate(self.program.inputs)}
        constants = tuple(self._constant(use, positions[use.name]) for use in self.uses)
        stored = dict(self._stored(constants))
        made: list[Op] = [*self._unpacking(constants, stored)]
        ops = (*made, *(op.reading({var: arg for var, arg in stored.items() if isinstance(arg, Literal)}) for op in self.b.ops))
        inputs = tuple(var for var in self.program.inputs if var.name not in names)
        return self.program.with_(inputs=inputs, ops=ops), constants

    # ---- which weights

    def _views_of_weights(self) -> dict[Var, tuple[str, tuple[int, ...]]]:
        """Weights that become constants, and their mere views, with the shape that each has."""
        ports = {var: (var.name, shape_of(var)) for var in self.program.inputs if var.name in self.frozen.names}
        views = dict(ports)
        bad: set[str] = {var.name for var in self.program.outputs if var in views}
        for op in self.program.ops:
            for var in op.inputs:
                if var not in views:
                    continue
                name = views[var][0]
                if self._is_view(op, var):
                    views[op.output] = name, shape_of(op.output)
                    bad |= {name} if op.output in self.program.outputs else set()
                elif not self._takes_constant(op, [one for one in op.inputs if one not in views]):
                    bad.add(name)
        return {var: found for var, found in views.items() if found[0] not in bad}

    def _is_view(self, op: Op, var: Var) -> bool:
        """It gives the weight another shape, or leaves out what filled its port up."""
        if op.kind.name == "reshape":
            return True
        if op.kind.name != "slice_by_size" or self._name(op) != var.name or var not in self.program.inputs:
            return False  # a slice of a view is a part of the weight
        layout = self.layouts[var.name]
        return layout.is_padded and shape_of(op.output) == (*layout.shape[:3], layout.used)

    def _name(self, op: Op) -> str:
        x = op.args["x"]
        return x.name if isinstance(x, Var) else ""

    def _takes_constant(self, op: Op, others: list[Var]) -> bool:
        """It reads one weight and one value of run time."""
        return op.kind.name in (*_ELEMENT_WISE, "matmul") and len(others) == 1 and set(op.args).issuperset(("x", "y"))

    # ---- ops

    def _op(self, op: Op) -> None:
        if self._is_convolved(op):
            return
        read = [(key, arg) for key, arg in op.args.items() if isinstance(arg, Var) and arg in self.views]
        if not read:
            self.b.ops.append(op)
            return
        ((key, var),) = read
        assert isinstance(var, Var)
        if op.kind.name == "matmul" and key == "x" and self._as_convolution(op, var):
            return
        self.b.ops.append(replace(op, args={**op.args, key: self._use(_Use(self.views[var][0], self._dense(var)))}))

    def _is_convolved(self, op: Op) -> bool:
        """A view that only undoes what a convolution does not do: the convolution takes its name."""
        x = op.args.get("x")
        made = self.convolved.get(x) if isinstance(x, Var) and op.kind.name == "reshape" else None
        if made is None or made.type != op.output.type:
            return False
        assert isinstance(x, Var)
        del self.convolved[x]
        self.b.ops = [with_outputs(one.reading({made: op.output}), tuple(op.output if var == made else var for var in one.outputs)) for one in self.b.ops]
        return True

    def _dense(self, var: Var) -> tuple[int, ...]:
        """The shape of a view, without what fills a port up."""
        name, shape = self.views[var]
        layout = self.layouts[name]
        return (*layout.shape[:3], layout.used) if shape == layout.shape else shape

    def _use(self, use: _Use) -> Var:
        if use not in self.uses:
            self.uses[use] = Var(self.b.fresh(f"{use.name}_constant"), TensorType(FP16, use.shape))
        return self.uses[use]

    def _as_convolution(self, op: Op, var: Var) -> bool:
        """w (M, K) @ y (K, N), y as it lies: N columns of K channels."""
        name, y = self.views[var][0], op.args["y"]
        shape, other = self._dense(var), shape_of(y)
        is_turned = bool(op.value("transpose_x", False))
        if bool(op.value("transpose_y", False)) or math.prod(shape[:-2]) != 1 or math.prod(other[:-2]) != 1:
            return False
        (rows, inner), columns = (shape[-2:] if not is_turned else shape[-2:][::-1]), other[-1]
        low = self.frozen.names[name]
        is_first = (list(self.layouts[name].order) == sorted(self.layouts[name].order)) != is_turned
        form = low if is_first and low_bit_op(low, self.chip) else "fp16"
        use = _Use(name, (rows, inner, 1, 1), is_turned, form)
        weight = Literal(TensorType(FP16, use.shape), blobs_of([Constant(0, self.layouts[name], use.shape)])[0][0])
        if not self.frozen.pays(inner, rows, columns) or not self._takes_convolution(weight, columns):
            return False
        x = self.b.reshape(x=y, shape=(1, inner, 1, columns), name=f"{op.output.name}_columns")
        made = self.b.conv(x=x, weight=self._use(use), name=f"{op.output.name}_conv", **_PLAIN)
        self.convolved[op.output] = made
        self.b.ops.append(Op(KINDS["reshape"], {"x": made, "shape": literal(shape_of(op.output))}, op.outputs, op.attrs))
        return True

    def _takes_convolution(self, weight: Literal, columns: int) -> bool:
        b = Builder()
        x = b.input("x", (1, weight.shape[1], 1, columns))  # type: ignore[arg-type]
        made = b.conv(x=x, weight=weight, **_PLAIN)
        return is_settled(b.ops[-1], b.program(made), self.chip)

    # ---- the file

    def _constant(self, use: _Use, position: int) -> Constant:
        return Constant(position, self.layouts[use.name], use.shape, use.is_transposed, use.form, self.frozen.names[use.name])

    def _stored(self, constants: tuple[Constant, ...]) -> Iterator[tuple[Var, Arg]]:
        for var, constant, places in zip(self.uses.values(), constants, blobs_of(constants), strict=True):
            parts = tuple(Literal(TensorType(dtype, shape), place) for (dtype, shape), place in zip(constant.parts, places, strict=True))
            yield var, parts if len(parts) > 1 else parts[0]

    def _unpacking(self, constants: tuple[Constant, ...], stored: Mapping[Var, Arg]) -> Iterator[Op]:
        """The ops that make fp16 of low-bit constants, in the spelling that the chip takes."""
        for var, constant in zip(self.uses.values(), constants, strict=True):
            parts = stored[var]
            if not isinstance(parts, tuple):
                continue
            kind, (data, scale), label = low_bit_op(constant.form, self.chip), parts, literal(var.name)
            if kind == "constexpr_blockwise_shift_scale":
                yield Op(KINDS[kind], {"data": data, "scale": scale}, (var,), {"name": label})
            elif kind == "constexpr_affine_dequantize":
                column = Literal(TensorType(FP16, constant.shape[:1]), scale.value)  # type: ignore[union-attr]
                said = {"axis": literal(0), "name": label, "quantized_data": data, "scale": column, "zero_point": literal(0, STORED["int8"])}
                yield Op(KINDS[kind], {}, (var,), said)  # type: ignore[arg-type]
            else:
                raise CompileError(f"{self.chip.title} is not known to take {constant.form} constants.")


_PLAIN = {"strides": (1, 1), "pad_type": "valid", "pad": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1}
