"""What the conditions of the data files mean: one check per rule.

A check is given the program's view, what it looks at (an op, a port, the program) and the condition's value. It
returns None where all is well, else the fault in the user's numbers, as the end of "<name>: ..".
"""

from collections.abc import Callable
from itertools import pairwise

from torchane.chips.view import ProgramView, shape_of
from torchane.mil.ir import Op, Var
from torchane.mil.types import FP16, TensorType

OpCheck = Callable[[ProgramView, Op, object], str | None]
PortCheck = Callable[[ProgramView, Var, object], str | None]
ProgramCheck = Callable[[ProgramView, object], tuple[tuple[str, str], ...]]

OP_CHECKS: dict[str, OpCheck] = {}
PORT_CHECKS: dict[str, PortCheck] = {}
PROGRAM_CHECKS: dict[str, ProgramCheck] = {}


def _on_op(check: OpCheck) -> OpCheck:
    OP_CHECKS[check.__name__] = check
    return check


def _on_port(check: PortCheck) -> PortCheck:
    PORT_CHECKS[check.__name__] = check
    return check


def _on_program(check: ProgramCheck) -> ProgramCheck:
    PROGRAM_CHECKS[check.__name__] = check
    return check


# --- ops ------------------------------------------------------------------------------------------------------


@_on_op
def fp16_only(view: ProgramView, op: Op, value: object) -> str | None:
    """Results are tensors of fp16: no int, bool or wider floats are computed. A cast has conditions of its own."""
    for var in () if op.kind.name == "cast" else op.outputs:
        if not isinstance(var.type, TensorType) or var.type.dtype != FP16:
            return f"its result is {var.type}, and only fp16 is computed"
    return None


@_on_op
def result_rank(view: ProgramView, op: Op, value: object) -> str | None:
    for var in op.outputs:
        if len(shape_of(var)) != value:
            return f"its result is {var.type}, of rank {len(shape_of(var))}, and must have rank {value}"
    return None


@_on_op
def operand_rank(view: ProgramView, op: Op, value: object) -> str | None:
    """Operands of run time have this rank; a constant may be a scalar, and a bias a vector."""
    for name, arg in view.operands(op):
        rank = len(shape_of(arg))
        if rank != value and not (view.literal(arg) is not None and (rank == 0 or name == "bias")):
            return f"{name} has rank {rank} and must have rank {value}"
    return None


@_on_op
def fixed_shapes(view: ProgramView, op: Op, value: object) -> str | None:
    for var in op.outputs:
        if isinstance(var.type, TensorType) and not var.type.is_fixed:
            return f"its result is {var.type}, and every size must be known"
    return None


@_on_op
def named_constants(view: ProgramView, op: Op, value: object) -> str | None:
    """Every argument is a value or a named `const`: no literal stands in an argument."""
    for name, arg in op.args.items():
        for item in arg if isinstance(arg, tuple) else (arg,):
            if not isinstance(item, Var):
                return f"{name} is a literal, and must be a named const"
    return None


@_on_op
def explicit_arguments(view: ProgramView, op: Op, value: object) -> str | None:
    """Every optional argument that has a value by default is written."""
    for name, parameter in op.kind.signature.parameters.items():
        given_by_default = parameter.default is not parameter.empty and parameter.default is not None
        if given_by_default and name not in op.args and name not in op.kind.operands:
            return f"{name} is left to its default, {parameter.default}, and must be written"
    return None


@_on_op
def constant(view: ProgramView, op: Op, value: object) -> str | None:
    """`value` names the argument."""
    arg = op.args.get(str(value))
    return f"{value} is known only at run time" if arg is not None and not view.is_constant(arg) else None


@_on_op
def absent(view: ProgramView, op: Op, value: object) -> str | None:
    return f"{value} is given" if str(value) in op.args else None


@_on_op
def kernel(view: ProgramView, op: Op, value: object) -> str | None:
    """The spatial sizes of a convolution's weight."""
    found = shape_of(op.args["weight"])[2:]
    return None if found == value else f"its kernel is {' x '.join(map(str, found))}, and must be {' x '.join(map(str, value))}"


@_on_op
def kernel_at_most(view: ProgramView, op: Op, value: object) -> str | None:
    """(height, width) of a convolution's weight."""
    found = shape_of(op.args["weight"])[2:]
    if all(size is not None and size <= most for size, most in zip(found, value)):
        return None
    return f"its kernel is {' x '.join(map(str, found))}, above {' x '.join(map(str, value))}"


@_on_op
def nonnegative_axis(view: ProgramView, op: Op, value: object) -> str | None:
    """The argument named by `value` counts from the front."""
    axis = view.value(op, str(value))
    return f"{value} is {axis}, and must count from the front" if isinstance(axis, int) and axis < 0 else None


@_on_op
def argument(view: ProgramView, op: Op, value: object) -> str | None:
    """`value` is (name, wanted)."""
    name, wanted = value
    found = view.value(op, name)
    return None if found == wanted else f"{name} is {found}, and must be {wanted}"


@_on_op
def argument_among(view: ProgramView, op: Op, value: object) -> str | None:
    """`value` is (name, one choice, another, ..)."""
    name, *choices = value
    found = view.value(op, name)
    return None if found in choices else f"{name} is {found}, and must be {' or '.join(choices)}"


@_on_op
def last_axis(view: ProgramView, op: Op, value: object) -> str | None:
    """The argument named by `value` (axis or axes) says the last axis and no other."""
    found, rank = view.value(op, str(value)), len(shape_of(op.args["x"]))
    axes = tuple(range(rank)) if found is None else (found if isinstance(found, tuple) else (found,))
    return None if {axis % rank for axis in axes} == {rank - 1} else f"{value} is {found}, and must be the last axis"


@_on_op
def power_of_two_extent(view: ProgramView, op: Op, value: object) -> str | None:
    """Along the argument named by `value`."""
    axis = view.value(op, str(value))
    size = shape_of(op.args["x"])[axis] if isinstance(axis, int) else None
    return None if size is None or size & (size - 1) == 0 else f"its extent is {size}, no power of two"


@_on_op
def row_slice_starts_at_zero(view: ProgramView, op: Op, value: object) -> str | None:
    begin = view.value(op, "begin")
    if begin is None or begin[-1] == 0:
        return None
    return f"it begins at {begin[-1]} on the last axis, and must begin at 0 there"


@_on_op
def no_zero_times_reduction(view: ProgramView, op: Op, value: object) -> str | None:
    """mul(reduce_..(x), 0)"""
    arguments = [arg for _, arg in view.operands(op)]
    if not any(view.uniform(arg) == 0.0 for arg in arguments):
        return None
    reduced = [view.producer.get(arg) for arg in arguments if isinstance(arg, Var)]
    reductions = [op for op in reduced if op is not None and op.kind.name.startswith("reduce_")]
    return f"it multiplies {reductions[0].name}, a reduction, by 0" if reductions else None


@_on_op
def size_at_most(view: ProgramView, op: Op, value: object) -> str | None:
    """`value` gives the most for each axis of a rank-4 tensor, from the front; 0 is any."""
    tensors = [*op.outputs, *(arg for _, arg in view.operands(op))]
    for arg in tensors:
        shape = shape_of(arg)
        if len(shape) == len(value):
            for axis, (size, most) in enumerate(zip(shape, value)):
                if size is not None and most and size > most:
                    return f"axis {axis} of {_named(arg)} has {size} entries, above {most}"
    return None


@_on_op
def inner_size_at_most(view: ProgramView, op: Op, value: object) -> str | None:
    """The K of a matmul."""
    size = shape_of(op.args["x"])[-2 if view.value(op, "transpose_x") else -1]
    return None if size is None or size <= value else f"its inner size is {size}, above {value}"


@_on_op
def scale_for_each_row(view: ProgramView, op: Op, value: object) -> str | None:
    """Of data [O, I, 1, 1] a scale [O, 1, 1, 1]."""
    data, scale = shape_of(op.args["data"]), shape_of(op.args["scale"])
    wanted = (*data[:1], *(1 for _ in data[1:]))
    return None if scale == wanted else f"its scale is of shape {scale}, and must be of {wanted}"


@_on_op
def output_channels_at_most(view: ProgramView, op: Op, value: object) -> str | None:
    channels = shape_of(op.output)[1]
    return None if channels is None or channels <= value else f"it has {channels} output channels, above {value}"


@_on_op
def input_channels_at_most(view: ProgramView, op: Op, value: object) -> str | None:
    channels = shape_of(op.args["x"])[1]
    return None if channels is None or channels < value else f"it has {channels} input channels, {value} or more"


# --- ports ----------------------------------------------------------------------------------------------------


@_on_port
def port_dtype(view: ProgramView, port: Var, value: object) -> str | None:
    """`value` lists the element types that are taken."""
    if isinstance(port.type, TensorType) and port.type.dtype.mil_name in value:
        return None
    return f"it is {port.type}, and must be of {' or '.join(value)}"


@_on_port
def port_rank(view: ProgramView, port: Var, value: object) -> str | None:
    rank = len(shape_of(port))
    return None if rank == value else f"it is {port.type}, of rank {rank}, and must have rank {value}"


@_on_port
def port_fixed(view: ProgramView, port: Var, value: object) -> str | None:
    return f"it is {port.type}, and every size must be known" if None in shape_of(port) else None


@_on_port
def port_row_multiple(view: ProgramView, port: Var, value: object) -> str | None:
    """`value` entries of fp16, and half as many of fp32: what counts is the bytes of a row."""
    shape = shape_of(port)
    size = shape[-1] if shape else 1
    wide = isinstance(port.type, TensorType) and port.type.dtype.mil_name == "fp32"
    multiple = value // 2 if wide else value
    return None if size is None or size % multiple == 0 else f"its last axis has {size} entries, no multiple of {multiple}"


# --- programs: (name, fault) for each ----------------------------------------------------------------------------


@_on_program
def sorted_ports(view: ProgramView, value: object) -> tuple[tuple[str, str], ...]:
    """Sorted by bytes, inputs and outputs (with the suffix that their symbols get) come in declared order."""
    program, faults = view.program, []
    for what, names in (
        ("inputs", [var.name for var in program.inputs]),
        ("outputs", [f"{var.name}@output" for var in program.outputs]),
    ):
        for before, after in pairwise(names):
            if before.encode() >= after.encode():
                plain = after.removesuffix("@output")
                faults.append((plain, f"the {what} are bound in sorted order, and it sorts before {before.removesuffix('@output')}"))
    return tuple(faults)


@_on_program
def no_output_of_identity_alone(view: ProgramView, value: object) -> tuple[tuple[str, str], ...]:
    outputs = view.program.outputs
    made = view.producer.get(outputs[0]) if len(outputs) == 1 else None
    if made is not None and made.kind.name == "identity":
        return ((outputs[0].name, "it is the only output, and an identity"),)
    return ()


@_on_program
def no_output_is_input(view: ProgramView, value: object) -> tuple[tuple[str, str], ...]:
    inputs = set(view.program.inputs)
    return tuple((var.name, "it is an input, returned as it came") for var in view.program.outputs if var in inputs)


@_on_program
def no_constant_output(view: ProgramView, value: object) -> tuple[tuple[str, str], ...]:
    return tuple((var.name, "it is a constant") for var in view.program.outputs if var in view.constants)


@_on_program
def outputs_once(view: ProgramView, value: object) -> tuple[tuple[str, str], ...]:
    outputs = view.program.outputs
    return tuple((var.name, "it is listed twice") for i, var in enumerate(outputs) if var in outputs[:i])


@_on_program
def outputs_not_read(view: ProgramView, value: object) -> tuple[tuple[str, str], ...]:
    """In a program of several outputs, one that other ops read too comes out of an identity."""
    outputs = view.program.outputs
    if len(outputs) < 2:
        return ()
    return tuple((var.name, f"{view.uses[var][0].name} reads it too") for var in outputs if var in view.uses)


@_on_program
def surfaces_at_most(view: ProgramView, value: object) -> tuple[tuple[str, str], ...]:
    count = len(view.program.inputs) + len(view.program.outputs)
    return (("the program", f"it has {count} ports, above {value}"),) if count > value else ()


@_on_program
def depth_at_most(view: ProgramView, value: object) -> tuple[tuple[str, str], ...]:
    return (("the program", f"its longest chain has {view.depth} ops, above {value}"),) if view.depth > value else ()


@_on_program
def one_function(view: ProgramView, value: object) -> tuple[tuple[str, str], ...]:
    count = len(view.program.functions)
    return () if count == 1 else (("the program", f"it has {count} functions"),)


@_on_program
def has_ops(view: ProgramView, value: object) -> tuple[tuple[str, str], ...]:
    return () if view.computing else (("the program", "it computes nothing"),)


def _named(arg: object) -> str:
    return arg.name if isinstance(arg, Var) else "a constant"
