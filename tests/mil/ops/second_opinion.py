"""coremltools as a second opinion: its programs as ours, and its own op tests turned on our op table.

Its tests say what Apple's runtime gives for thousands of small programs; away from a Mac they only build them.
`compare` stands in for the function that would run them there: it takes each program over, checks every type
against our rules, evaluates it, and compares with what the test expects.
"""

import functools
import importlib
import inspect
import pkgutil
import random
import sys
import types
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from torchane.mil.build import Builder
from torchane.mil.check import check
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Arg, Block, Function, Literal, Op, Program, Var, literal, walk
from torchane.mil.kinds import KINDS, kind_of
from torchane.mil.types import DTYPES, FP16, STRING, DType, ListType, StateType, TensorType, Type, dtype_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of torch versions and of libraries that it cannot find
    import coremltools as ct
    from coremltools.converters.mil import mil as cml
    from coremltools.converters.mil.mil import types as cml_types
    from coremltools.converters.mil.mil.types.symbolic import is_symbolic

OPSETS = {"iOS15": ct.target.iOS15, "iOS16": ct.target.iOS16, "iOS17": ct.target.iOS17, "iOS18": ct.target.iOS18}
_compared = 0


def type_from(given: Any) -> Type:
    """A coremltools type as ours."""
    if cml_types.is_state(given):
        return StateType(type_from(given.wrapped_type()))
    if cml_types.is_list(given):
        length = given.T[1]
        return ListType(type_from(given.T[0]), None if given.T[2] or is_symbolic(length) else length)
    if cml_types.is_tensor(given):
        shape = tuple(None if is_symbolic(size) else int(size) for size in given.get_shape())
        return TensorType(_dtype(given.get_primitive()), shape)
    return TensorType(_dtype(given))


def _dtype(given: Any) -> DType:
    name = cml_types.builtin_to_string(given)
    return {"str": STRING, "string": STRING, "double": DType.FP64}.get(name) or DTYPES[name]


def program_from(function: Any) -> Program:
    """A coremltools function as a program of ours, constants inline."""
    inputs = tuple(Var(var.name, type_from(var._sym_type)) for var in function.inputs.values())
    outputs = tuple(_var(var) for var in function.outputs)
    given_back = {var.name for var in function.outputs}
    return Program((Function("main", inputs, _ops(function.operations, given_back), outputs),))


def _var(var: Any) -> Var:
    return Var(var.name, type_from(var.sym_type))


def _is_constant(var: Any) -> bool:
    return var.op is not None and var.op.op_type == "const"


def _ops(operations: Any, given_back: set[str]) -> tuple[Op, ...]:
    ops = []
    for op in operations:
        outputs = tuple(_var(var) for var in op.outputs)
        attrs = {"name": literal(op.name)}
        if op.op_type == "const":
            if outputs[0].name in given_back:
                ops.append(Op(kind_of("const"), {}, outputs, attrs | {"val": _literal(op.outputs[0])}))
            continue
        args = {name: _arg(value) for name, value in op.inputs.items() if value is not None and name[0] != "_"}
        blocks = tuple(_block(block) for block in op.blocks)
        ops.append(Op(kind_of(op.op_type), args, outputs, attrs, blocks))
    return tuple(ops)


def _block(block: Any) -> Block:
    outputs = block.outputs
    constants = [var.op for var in outputs if _is_constant(var) and var.op not in block.operations]
    ops = _ops([*constants, *block.operations], {var.name for var in outputs})
    return Block(tuple(map(_var, block.inputs)), ops, tuple(map(_var, outputs)), block.name or "")


def _arg(value: Any) -> Arg:
    if isinstance(value, (list, tuple)):
        return tuple(_arg(item) for item in value)  # type: ignore[misc]
    return _literal(value) if _is_constant(value) else _var(value)


def _literal(var: Any) -> Literal:
    type_, value = type_from(var.sym_type), var.val
    if isinstance(type_, ListType):
        return Literal(type_, tuple(literal(str(item)) for item in value.ls))
    if type_.dtype is STRING:
        return Literal(type_, str(value))
    return Literal(type_, np.asarray(value).astype(type_.dtype.numpy).reshape(type_.shape))


def built(build: Any, placeholders: dict[str, Any], opset: Any) -> Program:
    """What a builder function of coremltools gives, as a program of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with cml.Function(placeholders, opset_version=opset) as function:
            outputs = build(**function.inputs)
            function.set_outputs(list(outputs) if isinstance(outputs, (list, tuple)) else [outputs])
    return program_from(function)


def _shaped(value: Any, var: Var) -> np.ndarray:
    """A scalar for an input (1,): Core ML has no inputs of rank 0, and the tests leave that to it."""
    array = np.asarray(value)
    return array.reshape(var.shape) if array.ndim == 0 else array


class Compared:
    """What `compare` gives back in place of a Core ML model: whatever more a test asks of it needs a Mac."""

    def __getattr__(self, name: str) -> Any:
        pytest.skip("compared; what follows asks a Core ML model")

    def __getitem__(self, index: Any) -> Any:
        pytest.skip("compared; what follows asks a Core ML model")


def compare(
    build: Any,
    input_placeholders: dict[str, Any],
    input_values: dict[str, np.ndarray],
    expected_output_types: Any = None,
    expected_outputs: Any = None,
    compute_unit: Any = None,
    frontend_only: bool = False,
    backend: Any = None,
    atol: float = 1e-4,
    rtol: float = 1e-5,
    pred_iters: int | None = None,
    **unused: Any,
) -> Compared:
    """Stands in for run_compare_builder of coremltools' tests; the types of its `expected_output_types` are
    compared through the program, whose every op is checked."""
    global _compared
    _compared += 1
    opset = backend.opset_version if backend is not None else ct.target.iOS15
    program = built(build, input_placeholders, opset)
    check(program)
    if frontend_only or expected_outputs is None:
        return Compared()
    values = {var.name: _shaped(input_values[var.name], var) for var in program.inputs if var.name in input_values}
    # A few roundings of 2**-11 in fp16; values recorded for fp16 are given with few digits even for fp32 programs.
    half = any(isinstance(type_, TensorType) and type_.dtype == FP16 for type_ in _types(program))
    slack = 2.0**-8 if half else 2.0**-12 if backend is not None and backend.precision == "fp16" else 0.0
    states: dict[str, np.ndarray] = {}
    for wanted in expected_outputs if pred_iters is not None else [expected_outputs]:
        given = evaluate(program, values, states=states)
        for (name, ours), theirs in zip(given.items(), wanted if isinstance(wanted, list) else [wanted], strict=True):
            ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
            np.testing.assert_allclose(ours, theirs, rtol + slack, atol + slack, err_msg=name)
    return Compared()


def _types(program: Program) -> Iterator[Type]:
    """The types of everything that a program is given, holds or computes."""
    yield from (var.type for var in program.inputs)
    for op in walk(program.ops):
        yield from (var.type for var in op.outputs)
        yield from (arg.type for arg in op.args.values() if isinstance(arg, Literal))


def _torch_function(name: str) -> Any:
    """scipy.special's function of that name: `axis` and `keepdims` are PyTorch's `dim` and `keepdim`."""

    def function(x: np.ndarray, axis: Any = None, **keep: bool) -> np.ndarray:
        dims = {} if name == "erf" else {"dim": tuple(range(x.ndim)) if axis is None else axis}
        keep_dim = {"keepdim": keep["keepdims"]} if keep else {}
        return getattr(torch.special, name)(torch.tensor(x), **dims, **keep_dim).numpy()

    return function


def _stand_ins() -> dict[str, types.ModuleType]:
    """What the tests import and we do without: PIL (for tests of images, which we leave out) and three
    functions of scipy, from torch."""
    pil, scipy = types.ModuleType("PIL"), types.ModuleType("scipy")
    pil.Image = types.ModuleType("PIL.Image")  # type: ignore[attr-defined]
    special = types.ModuleType("scipy.special")
    for name in ("erf", "logsumexp", "softmax"):
        setattr(special, name, _torch_function(name))
    scipy.special = special  # type: ignore[attr-defined]
    return {"PIL": pil, "PIL.Image": pil.Image, "scipy": scipy, "scipy.special": special}


@functools.cache
def their_tests() -> dict[str, type]:
    """The test classes of coremltools' op tests, by version and name, asking `compare` instead of Core ML."""
    missing = {name: module for name, module in _stand_ins().items() if name not in sys.modules}
    sys.modules.update(missing)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = importlib.import_module("coremltools.converters.mil.mil.ops.tests")
            names = [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
            modules = [importlib.import_module(name) for name in names if ".iOS" in name and ".test_" in name]
    finally:
        for name in missing:
            del sys.modules[name]
    found = {}
    for module in modules:
        if hasattr(module, "run_compare_builder"):
            module.run_compare_builder = compare
        version, file = module.__name__.split(".")[-2:]
        for name, value in vars(module).items():
            if name.startswith("Test") and isinstance(value, type) and value.__module__ == module.__name__:
                found[f"{version}/{file.removeprefix('test_')}/{name}"] = value
    return found


@dataclass
class Outcome:
    """What became of the cases of one test function: how many compared something, and how those failed that did."""

    compared: int = 0
    failures: list[str] = field(default_factory=list)


def run_theirs(cls: type, sample: int | None) -> dict[str, Outcome]:
    """Runs the cases of each test function of a class, at most `sample` of each, picked by name."""
    outcomes = {}
    for name, function in inspect.getmembers(cls, callable):
        if name.startswith("test"):
            cases = sorted(_cases(function), key=lambda case: zlib.crc32(repr(case).encode()))
            outcomes[name] = Outcome()
            for case in cases[:sample]:
                _run(getattr(cls(), name), case, outcomes[name])
    return outcomes


def _cases(function: Any) -> list[dict[str, Any]]:
    """The arguments of every case that a test function is parametrised by; none if it is marked to be skipped."""
    marks = getattr(function, "pytestmark", [])
    if any(mark.name in ("skip", "xfail") or (mark.name == "skipif" and mark.args[0]) for mark in marks):
        return []
    axes = []
    for mark in marks:
        if mark.name == "parametrize":
            names, values = (*mark.args, *mark.kwargs.values())[:2]
            axes.append((_names(names), _listed(mark, values)))
    cases: list[dict[str, Any]] = [{}]
    for names, values in axes:
        given = [dict(zip(names, value if len(names) > 1 else (value,), strict=True)) for value in values]
        cases = [case | more for case in cases for more in given]
    return cases


def _names(given: Any) -> list[str]:
    return [name.strip() for name in (given.split(",") if isinstance(given, str) else given)]


_LISTED: dict[int, tuple[Any, list]] = {}


def _listed(mark: Any, values: Any) -> list:
    """The values as a list, remembered with their mark: some are iterators, which can be read once."""
    if id(mark) not in _LISTED:
        _LISTED[id(mark)] = (mark, list(values))
    return _LISTED[id(mark)][1]


def _run(function: Any, case: dict[str, Any], outcome: Outcome) -> None:
    """One case, its random numbers fixed by its name. What fails without having compared is not about us."""
    before = _compared
    seed = zlib.crc32(repr(case).encode())
    np.random.seed(seed)
    random.seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**case)
    except (pytest.skip.Exception, pytest.xfail.Exception):
        pass
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  (every failure is counted, none is lost)
        if _compared > before:
            outcome.failures.append(f"{case}: {type(error).__name__}: {error}")
    outcome.compared += _compared > before


def ours(op: str, /, **args: Any) -> tuple[tuple[Type, ...], tuple[Any, ...]]:
    """The types and values of one op: arrays given for operands become inputs, all else constants."""
    builder, inputs, kind = Builder(), {}, KINDS[op]

    def placed(key: str, value: Any) -> Any:
        if key in kind.operands and isinstance(value, (list, tuple)):
            return tuple(placed(key, item) for item in value)
        if key not in kind.operands or not isinstance(value, np.ndarray):
            return value
        var = builder.input(key, TensorType(dtype_of(value), value.shape))
        inputs[var.name] = value
        return var

    results = builder.emit(kind, {key: placed(key, value) for key, value in args.items()})
    given = evaluate(builder.program(*results), inputs)
    return tuple(var.type for var in results), tuple(given[var.name] for var in results)


def theirs(op: str, /, opset: str = "iOS18", **args: Any) -> tuple[tuple[Type, ...], tuple[Any, ...]]:
    """The types and values that coremltools infers for an op whose arguments are all constants."""
    with warnings.catch_warnings(), cml.Function({}, opset_version=OPSETS[opset]):
        warnings.simplefilter("ignore")
        results = getattr(cml.Builder, op)(**args)
    results = results if isinstance(results, (list, tuple)) else (results,)
    return tuple(type_from(var.sym_type) for var in results), tuple(var.val for var in results)


def assert_agrees_with_coremltools(op: str, args: dict[str, Any], *, opset: str = "iOS18", rtol: float = 2e-6) -> None:
    """Equal types and, up to the fp32 arithmetic of theirs, equal values."""
    their_types, their_values = theirs(op, opset, **args)
    our_types, our_values = ours(op, **args)
    assert our_types == their_types
    for one, other in zip(our_values, their_values, strict=True):
        assert other is not None, f"coremltools does not evaluate {op}"
        assert one.shape == np.shape(other)
        np.testing.assert_allclose(np.asarray(one, np.float64), np.asarray(other, np.float64), rtol, rtol)
