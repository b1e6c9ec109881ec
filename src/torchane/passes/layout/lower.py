"""From PyTorch's shapes to rank 4, channels first: the layout pass.

    x (T, C), w (O, C)                                  x [1, C, 1, T]      w [1, 1, O, C]
    y = matmul(x, transpose(w))            ->           y = matmul(w, reshape(x, [1, 1, C, T]))    [1, 1, O, T]
    z = mul(y, gain)                                    z = mul(reshape(y, [1, O, 1, T]), gain)    [1, O, 1, T]

Every value keeps its logical shape in name only: it is stored in some order of its axes, and `transpose`,
`reshape` and the flags of matmul change what the axes are called, not where the bytes are. `search.py` picks
the orders, `rules.py` says what each op can do, `emit.py` writes the result. A real transpose
remains where two readers of one value cannot agree.

The numbers stay the same, to the bit where nothing is summed; sums may be taken in another order.
"""

import sys
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from torchane.abi.ports import LAST_AXIS_MULTIPLE, PortLayout, port_layout, weight_port_layout
from torchane.errors import CompileError
from torchane.mil.build import Builder
from torchane.mil.ir import Op, Program, Var, literal
from torchane.mil.types import FP16, TensorType
from torchane.passes.layout.emit import Emitter
from torchane.passes.layout.order import Order
from torchane.passes.layout.rules import rule_of
from torchane.passes.layout.search import Assignment, Question, search, weights_among

Ports = Mapping[str, PortLayout]


def lower_layout(
    program: Program,
    ports: Mapping[str, PortLayout | None],
    *,
    weights: Collection[str] = (),
    multiple: int = LAST_AXIS_MULTIPLE,
    longest: int = sys.maxsize,
) -> tuple[Program, dict[str, PortLayout]]:
    """The program in rank 4, and the layout of every input and output by its name.

    ports: the layouts that are settled; None or absent leaves the choice to this pass. weights: the names of
    ports that hold trained tensors or their gradients, which keep torch's own order if they can. multiple: what
    the last axis of a port is a multiple of. longest: the most entries of an axis that is not the channels', as far as rows of a product can be
    written so. Names and order of inputs and outputs stay; an output that is
    named twice gets a new name the second time.
    Raises CompileError for a layout that does not fit, an op without a rank-4 form, an output that is an input.
    """
    layouts = _settled(program, ports, weights, multiple)
    assignment = _assigned(program, layouts, weights)
    e = Emitter([var.name for var in program.inputs], longest)
    e.b.inputs.extend(_read_inputs(e, program, assignment, layouts, multiple))
    for op, way in zip(program.ops, assignment.ways, strict=True):
        rule_of(op).emit(e, op, way)
    names, results = _written_outputs(e, program, assignment, layouts, multiple)
    return _named(program, e.b, names, results), layouts


def _settled(
    program: Program, ports: Mapping[str, PortLayout | None], weights: Collection[str], multiple: int
) -> dict[str, PortLayout]:
    """The layouts that are known before any order is chosen: those given, and those of weights."""
    signature = {var.name: var for var in (*program.inputs, *program.outputs)}
    unknown = sorted(({*ports} | {*weights}) - {*signature})
    if unknown:
        raise CompileError(
            f"layouts are given for {', '.join(unknown)}, and the program's ports are {', '.join(signature)}."
        )
    layouts: dict[str, PortLayout] = {}
    for name, var in signature.items():
        if not isinstance(var.type, TensorType) or not var.type.is_fixed or var.type.dtype != FP16:
            raise CompileError(
                f"{name} is {var.type}; a port is a tensor of fp16 with known sizes. Cast it on the host."
            )
        given = ports.get(name)
        if given is not None:
            _require_fit(name, var, given, multiple)
            layouts[name] = given
        elif name in weights:
            layouts[name] = weight_port_layout(var.shape, multiple)
    return layouts


def _require_fit(name: str, var: Var, layout: PortLayout, multiple: int) -> None:
    if layout.logical != var.shape:
        raise CompileError(
            f"the layout given for {name} is of a tensor of shape {layout.logical}, and {name} is {var.type}."
        )
    if not layout.is_legal(multiple):
        raise CompileError(
            f"the layout given for {name} has rows of {layout.shape[3]}; a port's last axis is a multiple of {multiple}. "
            "Pad it, or leave the choice to the compiler (None)."
        )


def _assigned(program: Program, layouts: Ports, weights: Collection[str]) -> Assignment:
    held = frozenset(var for var in program.inputs if var.name in weights)
    bound = {var: layouts[var.name].order for var in program.inputs if var.name in layouts}
    wanted = {var: layouts[var.name].order for var in program.outputs if var.name in layouts}
    return search(Question(program.main, bound, wanted, weights_among(program.main, held)))


def _read_inputs(
    e: Emitter, program: Program, assignment: Assignment, layouts: dict[str, PortLayout], multiple: int
) -> list[Var]:
    """Declares the ports; a padded one is cut to what is used."""
    ports: list[Var] = []
    for var in program.inputs:
        order = assignment.orders[var]
        layout = layouts.setdefault(var.name, port_layout(var.shape, order, multiple))
        port = Var(var.name, layout.type)
        ports.append(port)
        if layout.is_padded:
            size = (*layout.shape[:3], layout.used)
            e.define(var, order, e.b.slice_by_size(x=port, begin=(0, 0, 0, 0), size=size, name=f"{var.name}_used"))
        else:
            e.define(var, order, port)
    return ports


def _written_outputs(
    e: Emitter, program: Program, assignment: Assignment, layouts: dict[str, PortLayout], multiple: int
) -> tuple[list[str], list[Var]]:
    """The outputs in their ports' views, each a value of its own: an alias becomes an identity."""
    names: list[str] = []
    results: list[Var] = []
    seen = {e.root(port) for port in e.b.inputs}
    for var in program.outputs:
        if var in program.inputs:
            raise CompileError(
                f"the output {var.name} is an input as it came. Hand it around the program, on the host."
            )
        order: Order = layouts[var.name].order if var.name in layouts else assignment.orders[var]
        layout = layouts.setdefault(var.name, port_layout(var.shape, order, multiple))
        name = var.name
        if name in names:
            name = e.b.fresh(name)
            layouts[name] = layout
        result = e.view(e.stored(var, order), (*layout.shape[:3], layout.used))
        if layout.is_padded:
            result = _padded(e, result, layout)
        if e.root(result) in seen:
            if len(program.outputs) == 1:
                raise CompileError(
                    f"the output {var.name} is an input under another shape, and the only output: engines refuse a "
                    "program that computes nothing. Hand it around the program, on the host."
                )
            result = e.b.identity(x=result, name=name)
        seen.add(e.root(result))
        names.append(name)
        results.append(result)
    return names, results


def _padded(e: Emitter, value: Var, layout: PortLayout) -> Var:
    """Rows widened by a matmul with ones on the diagonal, which is exact: no chip pads or joins along a row."""
    rows, width = int(np.prod(layout.shape[:3])), layout.shape[3]
    eye = literal(np.eye(layout.used, width, dtype=np.float16).reshape(1, 1, layout.used, width))
    wide = e.b.matmul(x=e.view(value, (1, 1, rows, layout.used)), y=eye, name=f"{value.name}_wide")
    return e.view(wide, layout.shape)


def _named(program: Program, b: Builder, names: list[str], results: list[Var]) -> Program:
    """The finished program, its outputs called as before; whoever else has such a name gives it up."""
    called = dict(zip(results, names, strict=True))
    taken = {*names, *(var.name for var in b.inputs)}
    fresh = Builder([*taken, *(var.name for op in b.ops for var in op.outputs)])
    new: dict[Var, Var] = {}
    ops: list[Op] = []
    for op in b.ops:
        outputs = []
        for var in op.outputs:
            name = called.get(var) or (fresh.fresh(var.name) if var.name in taken else var.name)
            new[var] = Var(name, var.type)
            outputs.append(new[var])
        attrs = {**op.attrs, "name": literal(outputs[0].name)}
        ops.append(replace(op.reading(new), outputs=tuple(outputs), attrs=attrs))
    return program.with_(inputs=tuple(b.inputs), ops=tuple(ops), outputs=tuple(new[var] for var in results))
