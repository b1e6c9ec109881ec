"""The table as a whole: every op has its rules and an oracle."""

import importlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest
from second_opinion import cml  # noqa: F401  (imports coremltools quietly)

from torchane.mil import ops  # noqa: F401  (fills the op table)
from torchane.mil.kinds import KINDS

# Ops of coremltools' table that ours lacks, each with the reason.
ABSENT = {
    "_const_symbolic": "a constant of its compiler's symbols, which no file holds",
    "conv_quantized": "never serialised: its documentation calls it experimental, and no compiler takes it",
}
MULTIPLY = {
    "matmul",
    "linear",
    "einsum",
    "conv",
    "conv_transpose",
    "rnn",
    "gru",
    "lstm",
    "scaled_dot_product_attention",
}


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"const"}))
def test_every_op_has_a_type_rule_and_a_numpy_rule(name):
    """const has neither: its value stands in an attribute."""
    assert KINDS[name].has_rules


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"const"}))
def test_both_rules_take_the_same_arguments_with_the_same_defaults(name):
    kind = KINDS[name]
    numpy_rule = inspect.signature(kind._evaluate)
    assert list(numpy_rule.parameters) == list(kind.signature.parameters)
    for parameter in kind.signature.parameters.values():
        default = numpy_rule.parameters[parameter.name].default
        if not isinstance(parameter.default, type(kind.signature)) and parameter.name not in kind.operands:
            assert default == parameter.default


@pytest.mark.parametrize("name", sorted(KINDS))
def test_operands_are_arguments(name):
    kind = KINDS[name]
    assert set(kind.operands) | set(kind.dynamic) <= set(kind.signature.parameters)


def test_ops_that_multiply_say_what_they_cost():
    assert {name for name, kind in KINDS.items() if kind._cost is not None} == MULTIPLY


def test_every_op_of_coremltools_is_here():
    registry = importlib.import_module("coremltools.converters.mil.mil.ops.registry").SSAOpRegistry
    assert set(registry.core_ops) - set(KINDS) == set(ABSENT)


def _loaded(path: Path) -> ModuleType:
    """A test file by its path: other folders have files of the same name."""
    spec = importlib.util.spec_from_file_location(f"op_cases_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_op_is_tested_against_an_oracle():
    """Each test file beside this one lists what it tests as CASES: the op, and the oracle or the arguments for it."""
    modules = [_loaded(path) for path in Path(__file__).parent.glob("test_*.py")]
    tested = {case[0] for module in modules for case in getattr(module, "CASES", ())}
    tested |= {op for module in modules for op in getattr(module, "BY_TORCH", ()) if isinstance(op, str)}
    tested |= {case[0] for module in modules for case in getattr(module, "BY_TORCH", ()) if isinstance(case, tuple)}
    beside = {"const": "its value is what it is", "crop": "test_slices", "reverse_sequence": "test_slices"}
    beside |= {"sliding_windows": "test_slices", "reshape_like": "test_shape", "one_hot": "test_constant"}
    beside |= {"gather_nd": "test_gather", "scatter": "test_gather", "scatter_along_axis": "test_gather"}
    beside |= {"scatter_nd": "test_gather", "non_zero": "test_sort", "dequantize": "test_quantize"}
    assert set(KINDS) - tested == set(beside)
