"""Every op in a package of its own, written by us and loaded by coremltools, which infers every type anew."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from torchane import mil
from torchane.inspect import mlpackage
from torchane.mil.build import Builder
from torchane.mil.ir import Function, Literal, Program, Var
from torchane.mil.types import BOOL, FP16, FP32, INT32, DType, StateType, TensorType

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load as load_pymil

GOLDEN = Path(__file__).parents[1] / "mil" / "golden" / "every_op.mil"
FUNCTIONS = {function.name: function for function in mil.parse(GOLDEN.read_text()).functions}

#: Ops that no package holds alone, and why.
LEFT_OUT = {
    "classify": "its result is a text, and ports are tensors",
    "const": "a program of constants has no input",
    "constexpr_lut_to_sparse": "its results are 1-bit masks, which only another constexpr op reads",
    "constexpr_sparse_blockwise_shift_scale": "its results are 1-bit masks, which only another constexpr op reads",
    **dict.fromkeys(
        ("list_gather", "list_length", "list_read", "list_scatter", "list_write", "make_list"),
        "lists are no ports; dtln-aec-128-part1 has them within",
    ),
}


def with_ports(function: Function) -> Program:
    """The function with ports that Core ML has: others are cast, scalars get an axis."""
    b = Builder(taken={var.name for op in function.ops for var in op.outputs} | {"y", "y_1", "y_2", "y_3"})
    source: dict[Var, Var | Literal] = {}
    for var in function.inputs:
        source[var] = b.input(f"{var.name}_in", var.type) if _is_port(var) else _admitted(b, var)
    b.ops += [replace(op.reading(source), blocks=tuple(_reading(block, source) for block in op.blocks)) for op in function.ops]
    outputs = [source.get(var, var) if _is_port(var) else _left(b, var) for var in function.outputs]
    return Program((Function("main", tuple(b.inputs), tuple(b.ops), tuple(outputs), function.opset),))  # type: ignore[arg-type]


def _reading(block, source):
    ops = tuple(op.reading(source) for op in block.ops)
    return replace(block, ops=ops, outputs=tuple(source.get(var, var) for var in block.outputs))


def _is_port(var: Var) -> bool:
    if isinstance(var.type, StateType):
        return True
    return isinstance(var.type, TensorType) and bool(var.type.shape) and var.type.dtype in (FP16, FP32, INT32, DType.INT8)


def _admitted(b: Builder, var: Var) -> Var:
    dtype = INT32 if var.type.dtype is BOOL else var.type.dtype
    value = b.input(f"{var.name}_in", TensorType(dtype, var.shape or (1,)))
    value = value if var.shape else b.squeeze(x=value, axes=(0,))
    return b.cast(x=value, dtype="bool") if var.type.dtype is BOOL else value


def _left(b: Builder, var: Var) -> Var:
    value = b.cast(x=var, dtype="int32") if var.type.dtype in (BOOL, DType.UINT16) else var
    return value if var.shape else b.expand_dims(x=value, axes=(0,))


def test_the_ops_that_are_left_out_are_few():
    assert LEFT_OUT.keys() <= FUNCTIONS.keys()
    assert len(FUNCTIONS) - len(LEFT_OUT) > 150


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - LEFT_OUT.keys()))
def test_coremltools_loads_it_and_infers_the_same_types(name, tmp_path):
    program = with_ports(FUNCTIONS[name])
    mil.check(program)
    model = coremltools.models.MLModel(str(mlpackage.save(program, tmp_path / "m.mlpackage")), skip_model_load=True)
    spec = model.get_spec()
    theirs = load_pymil(spec, spec.specificationVersion, model.weights_dir).functions["main"]
    assert [var.name for var in theirs.outputs] == [var.name for var in program.outputs]
    for ours, var in zip(program.outputs, theirs.outputs, strict=True):
        assert coremltools.converters.mil.mil.types.builtin_to_string(var.dtype) == ours.type.dtype.mil_name
        assert [size if isinstance(size, int) else None for size in var.shape] == list(ours.shape)


def test_an_update_of_a_state_is_written_as_two_statements(tmp_path):
    program = Program((replace(FUNCTIONS["coreml_update_state"], name="main"),))
    copy = mlpackage.load(mlpackage.save(program, tmp_path / "m.mlpackage"))
    assert [op.kind.name for op in copy.ops] == ["write_state", "read_state"]
    assert copy.ops[1].outputs == program.ops[0].outputs


def test_an_update_within_a_block_is_found(tmp_path):
    text = """func main(state<tensor<fp16, [1, 2]>> kv, tensor<fp16, [1, 2]> v) {
        bool p = const()[val = bool(true)];
        tensor<fp16, [1, 2]> r = cond(pred = p) a() { tensor<fp16, [1, 2]> y = coreml_update_state(state = kv, value = v); } -> (y) b() { } -> (v);
    } -> (r);"""
    copy = mlpackage.load(mlpackage.save(mil.parse(text), tmp_path / "m.mlpackage"))
    assert [op.kind.name for op in copy.ops[-1].blocks[0].ops] == ["write_state", "read_state"]
